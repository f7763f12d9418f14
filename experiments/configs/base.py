"""The keys that every config has, with their defaults; a config file states only its differences from these."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # everything random in training derives from it
            "dataset": "digits",  # a name of aevb.data.SOURCES, or tfds:NAME
            "data": data(),
            "model": model(),
            "vit": vit(),
            "bound": bound(),
            "learner": learner(),
            "optimizer": optimizer(),
            "train": train(),
            "eval": evaluation(),
        }
    )


def data() -> dict:
    return {
        "dir": "",  # folder that holds mnist/, frey_face/, ...; empty reads AEVB_DATA_DIR
        "binarization": "none",  # none, static, dynamic, threshold, grey
        "validation_size": 0.1,  # examples held out of training: a fraction below 1, else a count
        "test_size": 0.2,  # the same, for sets without a test split of their own
        "held_out_class": -1,  # left out of train and validation, for evaluate --downstream to find; -1 is none
        "train_size": 0,  # train on the first so many examples of the training split; 0 is all of them
        "corruption": "none",  # of what the encoder sees in training: none, masking, gaussian, salt_and_pepper
        "corruption_level": 0.3,  # the share of elements of masking and salt_and_pepper, gaussian's standard deviation
        "seed": 0,  # of the split and of static binarization
        "memory_limit_mb": 2048,  # MiB of decoded examples; a larger set streams from disk, 0 streams always
        "workers": 2,  # processes that read a streamed set
    }


def model() -> dict:
    return {
        "network": "mlp",  # of the encoder and the decoder: mlp, gated_mlp, conv, residual; vit of a masked autoencoder
        "hidden": (500,),  # width of each hidden layer, from x or convolutions to the code; the decoder's the other way
        "channels": (16, 32),  # of conv and residual, from the image to the code, each half as high and wide
        "num_blocks": 1,  # of residual, residual blocks for each of the channels
        "activation": "tanh",  # tanh, relu, gelu, elu, softplus
        "init_scale": 0.0,  # standard deviation of the first weights and biases; 0 starts them as Flax does
        "latent_dim": 20,  # size of z
        "posterior": "diagonal_gaussian",  # q(z | x): diagonal_gaussian, full_gaussian, point_mass, or a family
        "code": "linear",  # of point_mass, from the encoder's output: linear, relu, sigmoid, top_k
        "code_k": 10,  # of top_k, elements of the code that are not 0
        "context": "none",  # what encoder, decoder and prior are told of a datapoint: none, label
        "prior": "standard_normal",  # p(z): standard_normal, conditional_gaussian (p(z | context)), a family
        "likelihood": "bernoulli",  # p(x | z), a name of LIKELIHOODS in experiments/choices.py
        "num_components": 10,  # of logistic_mixture, logistic distributions a pixel
        "scale": "learned",  # of gaussian, laplace: learned (per element), shared, fixed; not so of negative binomials
        "fixed_scale": 0.1,  # standard deviation of a fixed scale, in units of x
        "min_scale": 0.01,  # floor under a learned standard deviation, in units of x
        "sigmoid_mean": False,  # a Gaussian's means through a sigmoid onto (0, 1)
    }


def vit() -> dict:
    """Of the network vit alone."""
    return {
        "patch_size": 4,  # pixels, height and width of a patch
        "pad": False,  # with zeros below and to the right, where the patches do not cover the image evenly
        "mask_ratio": 0.75,  # share of the patches that are hidden from the encoder in training, in [0, 1)
        "normalise": False,  # whether the target of a patch has its own mean and variance taken out
        "width": 64,  # of the encoder's tokens, and of the code
        "depth": 4,  # blocks of the encoder
        "num_heads": 4,  # of every block's attention
        "decoder_width": 32,  # of the decoder's tokens
        "decoder_depth": 2,  # blocks of the decoder
    }


def bound() -> dict:
    return {
        "name": "sgvb_b",  # sgvb_a (no closed form), sgvb_b (KL in closed form), score_function, iwae
        "num_samples": 1,  # draws of z a datapoint: L, or the k of iwae
        "kl_weight": 1.0,  # beta in training; every reported bound is at 1
        "kl_schedule": "constant",  # of beta: constant, linear, cosine, cyclical (rises from 0), adaptive
        "kl_warmup_steps": 0,  # steps of a schedule's rise from 0
        "kl_cycle_steps": 0,  # steps of a cycle of cyclical, its rise included
        "log_likelihood_target": 0.0,  # nats per datapoint, which adaptive holds by moving beta
        "adaptation_rate": 1e-3,  # of adaptive, change of log beta a nat and step
        "free_bits": 0.0,  # nats that the KL of each latent dimension has for nothing in training
        "weight_prior": False,  # add log N(theta; 0, I) to the data set's bound (MAP)
    }


def learner() -> dict:
    return {
        "name": "aevb",  # aevb, wake_sleep, mcem, full_vb, autoencoding, masked
        "num_leapfrog": 10,  # leapfrog steps of an HMC transition, of mcem
        "target_acceptance": 0.9,  # that mcem's step size is tuned to, a probability
        "weight_updates": 5,  # of mcem, after each transition
        "l1_weight": 0.0,  # of autoencoding, nats a unit of the code's activations
    }


def optimizer() -> dict:
    return {
        "name": "adam",  # adam, adamw, adagrad, sgd
        "learning_rate": 1e-3,  # peak step size
        "schedule": "constant",  # constant, cosine, piecewise
        "hold_steps": 0,  # first steps without an update, in which the optimizer only gathers its statistics
        "warmup_steps": 0,  # steps of linear rise from 0, after the hold and before any schedule
        "decay_steps": 0,  # length of cosine in steps; 0 is the length of the run, written back
        "boundaries": (),  # steps from the end of hold and warm-up at which piecewise multiplies the step size
        "scales": (),  # by how much, one factor a boundary
        "weight_decay": 0.0,  # decoupled, of adamw
        "initial_accumulator": 0.1,  # what adagrad's sum of squared gradients starts at
        "clip_norm": 0.0,  # largest global norm of a gradient; 0 does not clip
    }


def train() -> dict:
    return {
        "num_epochs": 100.0,  # passes over the training split
        "batch_size": 100,  # over all devices
        "log_every_steps": 100,  # steps in one call, and between two training rows of metrics.jsonl
        "eval_every_steps": 500,  # steps between two evaluations; a multiple of log_every_steps
        "eval_growth": 0.0,  # above 1: evaluate whenever the steps have grown by this factor, too
        "checkpoint_every_steps": 1000,  # a multiple of log_every_steps
        "keep_checkpoints": 2,  # the latest ones; the best on validation is kept beside them
        "ema_decay": 0.0,  # of an average of the weights, which is then what is evaluated; 0 keeps none
        "patience": 0,  # validation bounds without a better one before stopping early; 0 never stops
    }


def evaluation() -> dict:
    return {
        "curve_measure": "bound",  # measured during training, nats: bound, marginal (appendix D), reconstruction, none
        "curve_split": "validation",  # and on which split: validation, test; a marginal is measured on train, too
        "curve_examples": 0,  # on its first so many examples; 0 is all of them
        "estimator": "importance",  # of log p(x) at the end: importance, hmc (appendix D), ais, none (autoencoders)
        "num_samples": 0,  # of the estimator; 0 is 1000 importance samples, 50 posterior samples, 16 chains
        "max_examples": 0,  # of the test split at the end; 0 is all of them
        "batch_size": 100,  # datapoints at once, over all devices
    }
