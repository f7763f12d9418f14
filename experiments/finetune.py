"""Fine-tune the encoder of a run with a new head on labels, beside the same encoder trained from scratch.

    python -m experiments.finetune --workdir=runs/mae --num_labels=1000

A linear head is put on the code, the posterior mean (of a masked autoencoder the mean of the patch codes, nothing
masked), and encoder and head are trained together on the cross-entropy of the class: from the run's trained weights
and, so that no number stands alone, from the weights that the run itself started with. That is all the difference: the
labelled examples, their order, the head, the optimizer and the number of steps are the same. Both are judged on the
test split by their last weights; no epoch is chosen, so the validation split is not looked at. Examples are binarized
as in the run (where that is dynamic, afresh each time they are seen), and never corrupted or masked. Writes
finetuning.json at the end; the weights that are trained here are not kept, and the run stays as it is.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from tqdm import tqdm

from aevb import data, training
from aevb.data.binarization import Preprocess
from aevb.data.feeding import make_feed
from aevb.errors import InputError
from aevb.learners import classifying
from experiments import build, checkpointed, cli, downstream, numbers, report, workdir
from experiments.build import Run

EPOCHS, LEAST_STEPS = 20, 1000  # unless told otherwise; 20 epochs of few labels are too few steps for any encoder
WARMUP, WEIGHT_DECAY = 0.05, 0.05  # the share of the steps in which the step size rises; AdamW's decay
STEPS_PER_CALL = 50
STREAM = build.DATA_STREAM + 1  # keeps the keys apart from those of the run, where both seeds are equal


def class_context(run: Run) -> data.LabelContext:
    """From a class of the run's data set to the vector `[K]` that is 1 at it and 0 elsewhere.

    Raises:
      InputError: the learner trains no encoder, or one that is told the label; or the data have no classes.
    """
    if not run.learner.has_encoder:
        raise InputError(f"{run.facts['learner']} trains no encoder to fine-tune: give the --workdir of another run")
    if run.context is not None:
        raise InputError("the run's encoder is told the label that it is to find: give a run without a context")
    if run.config.data.held_out_class >= 0:
        raise InputError(
            f"config.data.held_out_class is {run.config.data.held_out_class}, so no example of it is there to learn "
            "from: give the --workdir of a run with all classes"
        )
    for name, split in (("train", run.dataset.train), ("test", run.dataset.test)):
        if split.labels is None or not len(split.examples):
            raise InputError(
                f"the {name} split of {run.dataset.name} has no labels, which classifiers are trained and judged by: "
                "give the --workdir of a run on data with labels"
            )
    unread = data.head(run.dataset.validation, 0)  # so it may be without labels
    context = data.label_context(dataclasses.replace(run.dataset, validation=unread))
    if not context.classes or context.size < 2:
        kind = "of 1 class" if context.classes else f"vectors of {context.size}"
        raise InputError(f"the labels of {run.dataset.name} are {kind}: a classifier needs at least 2 classes")
    return context


class LabelledSplit(NamedTuple):
    """Training examples whose labels are used, their places in the whole training split, and what a label becomes."""

    split: data.Split
    places: np.ndarray
    context: data.LabelContext

    @classmethod
    def draw(cls, run: Run, num_labels: int | None, seed: int) -> Self:
        """All, or a balanced draw of so many: the first that `downstream.label_efficiency` makes with this seed.

        Raises:
          InputError: as in `class_context`, or there are not so many labels of each class.
        """
        context, split = class_context(run), run.dataset.train
        if num_labels is None:
            return cls(split, np.arange(len(split.examples)), context)
        rng = np.random.default_rng((seed, num_labels, 0))
        places = np.sort(downstream.balanced_draw(split.labels, num_labels, rng))
        examples = training.read_rows(split.examples, places)
        return cls(dataclasses.replace(split, examples=examples, labels=split.labels[places]), places, context)


def with_class(preprocess: Preprocess, labelled: LabelledSplit) -> Preprocess:
    """The training split's preprocess for its labelled examples: the clean x, and the class as its context.

    A static binarization knows an example by its place, so its draw is the one that the run was trained on.
    """
    places = jnp.asarray(labelled.places, jnp.int32)

    def one(stored: jax.Array, label: jax.Array | None, example_id: jax.Array, key: jax.Array) -> data.Datapoint:
        return data.Datapoint(preprocess(stored, label, places[example_id], key).x, labelled.context(label))

    return one


def finetune(
    run: Run, labelled: LabelledSplit, start: Any, *, num_steps: int, learning_rate: float, seed: int, name: str = ""
) -> np.ndarray:
    """Train encoder and head from these parameters of the run's model: whether each test example is then right, `[N]`.

    Raises:
      NonFiniteError: a loss, a gradient or a logit is not finite.
    """
    init_key, shuffle_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), STREAM))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, int(WARMUP * num_steps), num_steps)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    learner = classifying.learner(run.model, optimizer, num_classes=labelled.context.size, start=start)
    steps = training.train(
        learner,
        learner.init(init_key),
        make_feed(labelled.split, run.batch_size, shuffle_key, run.config.data.workers),
        with_class(run.preprocess["train"], labelled),
        num_steps=num_steps,
        steps_per_call=STEPS_PER_CALL,
    )
    with tqdm(total=num_steps, desc=name, unit="step", disable=not sys.stderr.isatty()) as bar:
        for state, metrics in steps:
            params = state.params
            bar.update(len(metrics["loss"]))
    logits, test = classifying.logits(run.model), run.dataset.test
    mapped = run.map_split(lambda params, point, key: logits(params, point.x), "test", batches=10)
    each = training.collect(mapped(params, test, run.split_key("test")))
    numbers.check_finite(each, "what the classifier says of the test split")
    return each.argmax(axis=1) == test.labels


def measure(
    run: Run, labelled: LabelledSplit, starts: Mapping[str, Any], num_epochs: float | None, **options: Any
) -> dict[str, Any]:
    """The accuracy on test from each of the starts, which are parameters of the run's model: finetuning.json.

    `gain` is that of the first start over the last, with its standard error; absent where there is only one. The
    options are `learning_rate` and `seed` of `finetune`.
    """
    steps_per_epoch = len(labelled.places) / run.batch_size
    num_steps = max(EPOCHS * steps_per_epoch, LEAST_STEPS) if num_epochs is None else num_epochs * steps_per_epoch
    how, right, told = {"num_steps": math.ceil(num_steps), **options}, [], {}
    for name, start in starts.items():
        begun = time.perf_counter()
        right.append(finetune(run, labelled, start, **how, name=name))
        share, seconds = float(right[-1].mean()), time.perf_counter() - begun
        stderr = math.sqrt(share * (1 - share) / len(right[-1]))
        told[name] = {"accuracy": share, "accuracy_stderr": stderr, "seconds": seconds}
    difference = np.float64(right[0]) - right[-1]
    gain = {"gain": float(difference.mean()), "gain_stderr": numbers.standard_error(difference)}
    return {
        "split": "test",
        "num_examples": len(difference),
        **{name: run.facts[name] for name in ("dataset", "binarization", "learner")},
        "convention": "share of the split whose class has the largest logit, by the last weights; the standard error "
        "is binomial, that of the gain over the pairs of the same examples",
        "num_labels": len(labelled.places),
        "epochs": how["num_steps"] / steps_per_epoch,
        "batch_size": run.batch_size,
        "optimizer": f"adamw, weight decay {WEIGHT_DECAY}, cosine after {WARMUP:.0%} of warm-up",
        **how,
        "starts": told,
        **(gain if len(starts) > 1 else {}),
    }


def main(argv: list[str]) -> None:
    cli.leave_on_signal()  # nothing is written before the end
    cli.refuse(argv)
    folder = workdir.at(cli.required("workdir", "runs/mae"))
    given = {name: flags.FLAGS[name].value for name in ("num_epochs", "learning_rate", "seed")}
    for name in ("num_epochs", "learning_rate"):
        if given[name] is not None and not 0 < given[name] < math.inf:  # so NaN is refused
            raise InputError(f"--{name} is {given[name]}: it must be a number above 0")
    run = build.build(workdir.read_config(folder))
    labelled = LabelledSplit.draw(run, flags.FLAGS.num_labels, given["seed"])
    params, which = checkpointed.restore(run, folder)
    starts = {"pretrained": training.unreplicate(params)}
    if flags.FLAGS.from_scratch:
        starts["from scratch"] = run.init_state().params
    result = measure(run, labelled, starts, **given) | which | {"hardware": workdir.hardware()}
    workdir.write_json(folder / "finetuning.json", result)
    report.write(folder)
    each = [f"{one['accuracy']:.2%} ± {one['accuracy_stderr']:.2%} {name}" for name, one in result["starts"].items()]
    print(
        f"{folder}: test accuracy {', '.join(each)} ({result['num_labels']:,} labels, {result['epochs']:.4g} epochs, "
        f"{result['num_examples']:,} test examples)"
    )


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.DEFINE_integer("num_labels", None, "Labelled examples, every class alike; all unless given.", lower_bound=1)
    flags.DEFINE_float("num_epochs", None, f"Of the labelled examples; {EPOCHS}, or {LEAST_STEPS} steps, unless given.")
    flags.DEFINE_float("learning_rate", 1e-3, "The largest step size of AdamW.")
    flags.DEFINE_bool("from_scratch", True, "Train from the run's first weights too, to compare with.")
    flags.DEFINE_integer("seed", 0, "Of the labelled examples and their order.", lower_bound=0, upper_bound=2**32 - 1)
    cli.run(main)
