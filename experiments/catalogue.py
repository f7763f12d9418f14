"""The numbers that runs are compared by: what each means, its unit, and which way is better."""

from typing import NamedTuple

LIKELIHOOD, RECONSTRUCTION, RESTORATION = "Likelihood", "Reconstruction", "Restoration"
CODES = "What the codes are good for"


class Metric(NamedTuple):
    """A number.

    Attributes:
      group: of the table that it stands in.
      heading: of its column, with {kind} where there are several; empty for one that is in the CSV alone.
      unit: after the scale.
      better: 1 where higher is better, -1 where lower is, 0 where neither is.
      digits: after the point.
      meaning: a clause for whoever reads the table.
      scale: from the CSV to the table, 100 for a share in per cent.
    """

    group: str
    heading: str
    unit: str
    better: int
    digits: int
    meaning: str = ""
    scale: float = 1


def _share(group: str, heading: str, meaning: str, better: int = 1, digits: int = 1) -> Metric:
    return Metric(group, heading, "%", better, digits, meaning, 100)


# In the order of the columns. Of one that comes in several, the kind (of noise, ...) stands after a space.
CATALOGUE = {
    "nll": Metric(LIKELIHOOD, "NLL", "nats", -1, 2, "NLL is −log p(x), estimated"),
    "elbo": Metric(LIKELIHOOD, "ELBO", "nats", 1, 2, "the ELBO is log p(x | z) − KL, a lower bound of log p(x)"),
    "log_likelihood": Metric(
        LIKELIHOOD, "log p(x | z)", "nats", 1, 2,
        "log p(x | z) is at draws of z where there is a KL, and else at the code of x, where it bounds nothing",
    ),
    "kl": Metric(LIKELIHOOD, "KL", "nats", 0, 2, "KL is that of the posterior from the prior"),
    "bits_per_dim": Metric(LIKELIHOOD, "bits/dim", "bits", -1, 3, "bits/dim is the NLL a dimension, in bits"),
    "mutual_information": Metric(LIKELIHOOD, "I(x; z)", "nats", 0, 2, "I(x; z) is what codes say of the examples"),
    "marginal_kl": Metric(LIKELIHOOD, "", "nats", 0, 2),
    "active_units": Metric(LIKELIHOOD, "active units", "", 0, 0, "active units are latent dimensions in use"),
    "mse": Metric(RECONSTRUCTION, "squared error", "", -1, 5, "the squared error is a mean over elements and examples"),
    "psnr": Metric(RECONSTRUCTION, "PSNR", "dB", 1, 2, "PSNR is of that error, at the range of the data"),
    "pca_mse": Metric(RECONSTRUCTION, "PCA’s squared error", "", 0, 5, "PCA’s is of a code of the same size"),
    "train_mse": Metric(RECONSTRUCTION, "", "", 0, 5),
    "eigenvalue_tail": Metric(RECONSTRUCTION, "", "", 0, 5),
    "largest_angle_to_pca": Metric(
        RECONSTRUCTION, "angle to PCA", "°", 0, 1, "the angle is the largest between the two subspaces"
    ),
    "masked_mse": Metric(
        RECONSTRUCTION, "squared error, masked", "", -1, 5,
        "a masked autoencoder’s error is of the patches that were hidden from it, and compares with no other",
    ),
    "masked_psnr": Metric(RECONSTRUCTION, "PSNR, masked", "dB", 1, 2),
    "active": _share(RECONSTRUCTION, "active", "active are the elements of a code that are not 0", 0),
    "dead_units": Metric(RECONSTRUCTION, "dead units", "", 0, 0, "dead units are elements that are 0 in every code"),
    "reconstruction_psnr": Metric(RESTORATION, "as it is", "dB", 1, 2),
    "denoising_psnr": Metric(
        RESTORATION, "{kind} noise", "dB", 1, 2, "noisy input is what a model that changed nothing would give back"
    ),
    "inpainting_psnr": Metric(RESTORATION, "rectangle", "dB", 1, 2),
    "reconstruction_mse": Metric(RESTORATION, "", "", -1, 5),
    "denoising_mse": Metric(RESTORATION, "", "", -1, 5),
    "inpainting_mse": Metric(
        RESTORATION, "rectangle, squared error", "", -1, 5,
        "the mean image fills in the mean of these images",
    ),
    "probe_accuracy": _share(CODES, "linear probe", "the linear probe learns from all labels"),
    "knn_accuracy": _share(CODES, "5 neighbours", "neighbours are the nearest codes of training examples"),
    "accuracy_10_labels": _share(CODES, "10 labels", "few labels are drawn 10 times, as many of each class"),
    "accuracy_100_labels": _share(CODES, "100 labels", ""),
    "accuracy_1000_labels": _share(CODES, "1,000 labels", ""),
    "finetuned_accuracy": _share(CODES, "fine-tuned, {kind}", "fine-tuned is the encoder itself, with labels"),
    "kmeans_nmi": Metric(CODES, "k-means NMI", "", 1, 3, "NMI and ARI compare clusters with classes, 1 at best"),
    "kmeans_ari": Metric(CODES, "k-means ARI", "", 1, 3),
    "anomaly_auroc": Metric(
        CODES, "anomaly AUROC", "", 1, 3,
        "AUROC is of telling apart a class whose codes the detector never saw, though the encoder did; 0.5 by chance",
    ),
    "neighbours_auroc": Metric(
        CODES, "unseen class, by neighbours", "", 1, 3,
        "that of an unseen class is of one held out of all training, by the distance of codes or the squared error",
    ),
    "error_auroc": Metric(CODES, "unseen class, by error", "", 1, 3),
}  # fmt: skip
ORDER = list(CATALOGUE)


def name_of(metric: str) -> str:
    """What it is in the catalogue: `denoising_psnr` of `denoising_psnr gaussian 0.25`."""
    return metric.partition(" ")[0]


def place(metric: str) -> int:
    """Where its column stands; of one that comes in several, all in the same place."""
    return ORDER.index(name_of(metric))


def heading(metric: str) -> str:
    """Of its column, with its kind where it comes in several."""
    _, _, kind = metric.partition(" ")
    return CATALOGUE[name_of(metric)].heading.format(kind=kind or "all labels")
