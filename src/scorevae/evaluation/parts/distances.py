"""How far samples are from test images, as distributions, in two feature spaces."""

from scorevae.autoencoders.table import MODEL
from scorevae.evaluation.features import FeatureFn, distances, load_inception, locate_inception
from scorevae.evaluation.part import Found, Numbers, Part, Subject
from scorevae.evaluation.report.tables import Metric

SETS = (MODEL, "prior", "train_images")
TEXT = "How far the distribution of samples is from that of the test images; lower is better."


def by_classifier(subject: Subject) -> Found:
    """In the features of a small classifier of the training images."""
    features = subject.feature_classifier.features
    return _compare(subject, features, "classifier_fd", "classifier_kd")


def by_inception(subject: Subject) -> Found:
    """FID and KID."""
    settings = subject.config.evaluate.quality
    path = locate_inception(settings.inception, subject.config.selected.data.image.size)
    return _compare(subject, load_inception(path, subject.model.device), "fid", "kid")


def _compare(subject: Subject, features: FeatureFn, frechet: str, kernel: str) -> Found:
    count = subject.config.evaluate.quality.images
    reference = subject.first(count, "sample quality")
    numbers: Numbers = {}
    for name in SETS:
        both = distances(features, subject.generated[name][:count], reference)
        numbers[name] = dict(zip((frechet, kernel), both, strict=True))
    return Found(numbers)


CLASSIFIER = Part(
    name="classifier_distances",
    title="Samples, by a small classifier",
    text=TEXT,
    compute=by_classifier,
    settings="quality",
    metrics={
        "classifier_fd": Metric("Fréchet distance", "features of a small classifier", "lower"),
        "classifier_kd": Metric("Kernel distance", "features of a small classifier", "lower"),
    },
    rows=dict.fromkeys(SETS),
)
INCEPTION = Part(
    name="inception_distances",
    title="Samples, by Inception",
    text=TEXT,
    compute=by_inception,
    settings="quality",
    metrics={"fid": Metric("FID", "", "lower"), "kid": Metric("KID", "", "lower")},
    rows=dict.fromkeys(SETS),
)
