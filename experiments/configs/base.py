"""The keys that every config has, with their defaults; a config file states only its differences from these."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,  # everything random in training derives from it
            "dataset": "digits",  # a name of aevb.data.SOURCES, or tfds:NAME
            "data": data(),
            "model": model(),
            "bound": bound(),
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
        "seed": 0,  # of the split and of static binarization
        "memory_limit_mb": 2048,  # MiB of decoded examples; a larger set streams from disk, 0 streams always
        "workers": 2,  # processes that read a streamed set
    }


def model() -> dict:
    return {
        "network": "mlp",  # of the encoder and the decoder
        "hidden": (500,),  # width of each hidden layer
        "activation": "tanh",  # tanh, relu, gelu, elu, softplus
        "latent_dim": 20,  # size of z
        "posterior": "diagonal_gaussian",  # family of q(z | x)
        "likelihood": "bernoulli",  # bernoulli, continuous_bernoulli, gaussian
        "scale": "learned",  # of a Gaussian likelihood: learned (per element) or fixed
        "fixed_scale": 0.1,  # standard deviation of a fixed scale, in units of x
        "min_scale": 0.01,  # floor under a learned standard deviation, in units of x
        "sigmoid_mean": False,  # a Gaussian's means through a sigmoid onto (0, 1)
    }


def bound() -> dict:
    return {
        "name": "sgvb_b",  # sgvb_a (no closed form), sgvb_b (KL in closed form)
        "num_samples": 1,  # L, draws of z a datapoint
        "kl_weight": 1.0,  # beta in training; every reported bound is at 1
        "kl_warmup_steps": 0,  # steps over which beta rises linearly from 0
        "weight_prior": False,  # add log N(theta; 0, I) to the data set's bound (MAP)
    }


def optimizer() -> dict:
    return {
        "name": "adam",  # adam, adamw, adagrad, sgd
        "learning_rate": 1e-3,  # peak step size
        "schedule": "constant",  # constant, cosine, piecewise
        "warmup_steps": 0,  # steps of linear rise from 0, before any schedule
        "decay_steps": 0,  # length of cosine in steps; 0 is the length of the run, written back
        "boundaries": (),  # steps, counted from the end of the warm-up, at which piecewise multiplies the step size
        "scales": (),  # by how much, one factor a boundary
        "weight_decay": 0.0,  # decoupled, of adamw
        "clip_norm": 0.0,  # largest global norm of a gradient; 0 does not clip
    }


def train() -> dict:
    return {
        "num_epochs": 100.0,  # passes over the training split
        "batch_size": 100,  # over all devices
        "log_every_steps": 100,  # steps in one call, and between two training rows of metrics.jsonl
        "eval_every_steps": 500,  # steps between two validation bounds; a multiple of log_every_steps
        "checkpoint_every_steps": 1000,  # a multiple of log_every_steps
        "keep_checkpoints": 2,  # the latest ones; the best on validation is kept beside them
        "ema_decay": 0.0,  # of an average of the weights, which is then what is evaluated; 0 keeps none
        "patience": 0,  # validation bounds without a better one before stopping early; 0 never stops
    }


def evaluation() -> dict:
    return {
        "num_samples": 1000,  # importance samples of the test evaluation at the end
        "batch_size": 100,  # datapoints at once, over all devices
    }
