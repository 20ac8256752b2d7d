"""How well simple classifiers read labels from z, from every system's and from pixels."""

from collections.abc import Mapping

import matplotlib.pyplot as plt

from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.data.arrays import to_tensor, to_unit_range
from scorevae.evaluation.figures import Figure
from scorevae.evaluation.part import Caption, Columns, Found, Numbers, Part, Subject
from scorevae.evaluation.probe import (
    Accuracy,
    Labelled,
    Probe,
    Vectors,
    judge,
    labelled,
    linear_probe,
    neighbour_probe,
)
from scorevae.evaluation.report.tables import Metric, Rows
from scorevae.shapes import Labels

PIXELS = "pixels"


def compute(subject: Subject) -> Found:
    """Both probes on every code, and the linear one on z of noised images."""
    settings, labels = subject.config.evaluate.probes, subject.probed.labels
    asked_labels = None if subject.test.labels is None else subject.test.labels[: settings.images]
    images = to_unit_range(to_tensor(subject.probed.images))
    codes = {MODEL: (subject.z_probed.vectors, subject.z)}
    for name, system in subject.systems.items():
        if name != MODEL:
            codes[name] = system.encode(images).mean, subject.reconstructed[name].posterior.mean
    codes[PIXELS] = images.flatten(1), subject.originals.flatten(1)
    numbers: Numbers = {}
    for name, (train, test) in codes.items():
        known = labelled(train, labels)
        asked = labelled(test[: settings.images], asked_labels)
        linear = subject.probe if name == MODEL else linear_probe(known)
        near = neighbour_probe(known, neighbours=settings.neighbours)
        numbers[name] = {
            "linear_probe": judge(linear, asked).accuracy,
            "neighbours": judge(near, asked).accuracy,
        }
    assert asked_labels is not None
    originals, seed = subject.originals[: settings.images], subject.config.seed
    noised = {t: subject.model.encode_at(originals, t, seed=seed).mean for t in settings.times}
    accuracies = accuracy_over_time(subject.probe, noised, asked_labels)
    rows: Rows = [{"t": t, **accuracy._asdict()} for t, accuracy in accuracies.items()]
    figure = draw(accuracies, "what the encoder reads in noised images")
    return Found(numbers, {"probe_over_time": rows}, {"probe_over_time": figure})


def accuracy_over_time(
    probe: Probe, codes: Mapping[float, Vectors], labels: Labels
) -> dict[float, Accuracy]:
    """One probe, trained at t = 0, on the encoder's means of images noised to each time t.

    By eq. 11 of arXiv 2304.12141, q(z|x_t, t) is a distribution of the z of the clean image, and
    its mean approximates E[z|x_t]. Every t shares one space, hence one probe; how much of the
    class is still in reach at t is what it then measures.
    """
    return {t: judge(probe, Labelled(z, labels)) for t, z in codes.items()}


def draw(accuracies: Mapping[float, Accuracy], title: str) -> Figure:
    """Accuracy of the probe against the time t of the noise that the encoder reads."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    times = list(accuracies)
    for name in ("accuracy", "balanced"):
        axis.plot(times, [getattr(a, name) for a in accuracies.values()], marker="o", label=name)
    majority = next(iter(accuracies.values())).majority
    axis.axhline(majority, color="grey", linestyle="--", label="most frequent class")
    axis.set(
        title=title, xlabel="t of the noise", ylabel="accuracy on test images", ylim=(0, 1.03)
    )
    axis.legend(fontsize=8)
    return figure


PART = Part(
    name="probes",
    title="Probes of z",
    text="How much of the labels a simple classifier reads from z, beside other codes.",
    compute=compute,
    settings="probes",
    metrics={
        "linear_probe": Metric("Linear probe", "accuracy on test images", "higher", headline=3),
        "neighbours": Metric("Nearest neighbours", "accuracy on test images", "higher"),
    },
    rows={**dict.fromkeys(SYSTEMS), PIXELS: None},
    tables={"probe_over_time": Columns(("t", "accuracy", "balanced", "majority"))},
    figures={
        "probe_over_time": Caption(
            "A linear probe, trained on z of clean images, on z of noised ones.",
            "Accuracy falls with the time of the noise to that of the most frequent class.",
        )
    },
)
