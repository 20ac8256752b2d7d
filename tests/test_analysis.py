"""analysis: every part hands on what the libraries find, says why not, and can be switched off."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import EVALUATE, tiny_config, write_encoder, write_prior, write_vae

from scorevae.autoencoders import ScoreVAE, VAEBaseline
from scorevae.data.arrays import Split, to_tensor
from scorevae.errors import MetricUnavailable
from scorevae.evaluation import part as analysis
from scorevae.evaluation import probe as latents
from scorevae.evaluation import stage as evaluation
from scorevae.evaluation.bound import likelihood_bound
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import NUMBERS, PARTS, TABLES, Analysis, Part, Subject, analyse
from scorevae.evaluation.report import sections
from scorevae.evaluation.report.page import Number
from scorevae.evaluation.report.tables import METRICS
from scorevae.networks.vae import load_vae
from scorevae.randomness import make_generator
from scorevae.reconstructions import save

LABELS = np.arange(64) % 2


def subject(folder: Path, labels: np.ndarray | None = LABELS, **overrides: Any) -> Subject:  # noqa: ANN401
    """Random weights and random images of two classes."""
    config = tiny_config(**overrides)
    write_prior(folder / "prior.safetensors", config)
    write_encoder(folder / "encoder.safetensors", config)
    write_vae(folder / "vae.safetensors", config)
    model = ScoreVAE.load(folder, sampling=config.sampling, batch=50)
    vae = VAEBaseline(load_vae(folder / "vae.safetensors"))
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8), labels) for _ in range(2)
    )
    found = Subject(config, model, vae, train, test, folder, {0: "neutral", 1: "smile"})
    originals = found.originals
    reconstructed = vae.reconstruct(originals)
    save(folder, "vae", reconstructed)
    posterior = model.encode(originals)
    save(folder, "scorevae", reconstructed._replace(posterior=posterior))
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def found(usual: Subject) -> Analysis:
    """All parts, run once."""
    return analyse(usual, lambda part: None)


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Pyplot warns where many are open."""
    yield
    plt.close("all")


def test_every_part_runs(found: Analysis) -> None:
    """Catches a part that is never called, and a reason without a fault."""
    assert set(found.parts) == set(PARTS) - {"inception_distances"}
    assert set(found.reasons) == {"inception_distances"}
    assert set(found.seconds) == set(PARTS)


def test_likelihood_is_that_of_the_library(usual: Subject, found: Analysis) -> None:
    """Catches systems exchanged, other images, another unit, and terms that do not add up."""
    settings, model = usual.config.evaluate.likelihood, usual.model
    bounds = likelihood_bound(
        to_tensor(usual.test.images[: settings.images]),
        sde=model.sde, prior=model.prior_score, encoder=model.encoder,
        repeats=settings.repeats, draws=settings.draws, batch=500, seed=usual.config.seed,
    )  # fmt: skip
    numbers = found.parts["likelihood"].numbers
    for name, bound in (("scorevae", bounds.scorevae), ("prior", bounds.prior)):
        expected = bound.bits_per_dimension()["total"]
        assert numbers[name]["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-6)
        errors = (expected.monte_carlo_error, expected.image_error)
        names = ("bits_per_dim_error", "bits_per_dim_image_error")
        assert [numbers[name][n] for n in names] == pytest.approx(errors, rel=1e-5)
        terms = [numbers[name].get(term, 0.0) for term in sections.TERMS]
        assert sum(terms) == pytest.approx(expected.mean, rel=1e-9)
    assert "bits_rate" not in numbers["prior"]
    assert np.isfinite(numbers["prior"]["ode_bits_per_dim"])
    rows = found.parts["likelihood"].tables["integrand"]
    assert [row["prior"] for row in rows] == pytest.approx(
        bounds.prior.integrand.mean.tolist(), rel=1e-5, nan_ok=True
    )


def test_studies_use_the_first_images(usual: Subject, found: Analysis) -> None:
    """Catches latents of other images than the originals they are compared with."""
    (row,) = (r for r in found.parts["guidance"].tables["guidance"] if r["guidance"] == 1.0)
    count = usual.config.evaluate.guidance.images
    z = usual.model.encode(usual.originals[:count]).mean
    images = usual.model.decode(z, seed=usual.config.seed)
    expected = l2_distances(usual.originals[:count], images).mean().item()
    # the encoder in another batch: float32 convolutions
    assert row["l2"] == pytest.approx(expected, rel=1e-4)
    names = {row["sampler"] for row in found.parts["samplers"].tables["samplers"]}
    assert len(names) == 6


def test_classes_go_by_their_names(found: Analysis) -> None:
    """Catches legends that say 0 and 1 although the data set knows what they are."""
    (axis,) = found.parts["embedding"].figures["embedding"].axes
    legend = axis.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["neutral", "smile"]
    title = found.parts["edits"].figures["edits"].get_suptitle()
    assert title == "z moved along E[z|smile] − E[z|neutral]"


def test_probes_know_their_code(usual: Subject, found: Analysis) -> None:
    """Catches codes exchanged between systems, and probes trained on test images."""
    numbers, settings = found.parts["probes"].numbers, usual.config.evaluate.probes
    train, test = usual.probed, usual.test
    pixels = [to_tensor(split.images).flatten(1) * 0.5 + 0.5 for split in (train, test)]
    probe = latents.linear_probe(latents.labelled(pixels[0], train.labels))
    asked = latents.labelled(pixels[1][: settings.images], test.labels[: settings.images])
    assert numbers["pixels"]["linear_probe"] == latents.judge(probe, asked).accuracy
    assert set(numbers) == {"scorevae", "vae", "pixels"}
    rows = found.parts["probes"].tables["probe_over_time"]
    assert [row["t"] for row in rows] == settings.times
    assert rows[0]["accuracy"] == numbers["scorevae"]["linear_probe"]


def test_shuffled_z_is_another_images(usual: Subject, found: Analysis) -> None:
    """Catches the image's own z in both, and other noise for one of them."""
    count, seed = usual.config.evaluate.shuffled.images, usual.config.seed
    z, originals = usual.z[:count], usual.originals[:count]
    partner = latents.derangement(count, seed)
    both = usual.model.decode_groups(torch.stack([z, z[partner]], dim=1), seed=seed)
    expected = l2_distances(originals, both[:, 1]).mean().item()
    assert found.parts["shuffled"].numbers["scorevae"]["l2_shuffled_z"] == expected


def test_mean_of_draws(found: Analysis) -> None:
    """Catches L2 of one draw and of the mean exchanged: the mean is nearer, by convexity."""
    numbers = found.parts["draws"].numbers["scorevae"]
    assert numbers["l2_of_mean"] < numbers["l2_of_one_draw"]


def test_draws_are_for_sampled_latents(usual: Subject, found: Analysis) -> None:
    """Catches draws for the mean of q(z|x): only for z ~ q(z|x) is their calibration 1."""
    settings, seed = usual.config.evaluate.draws, usual.config.seed
    posterior = usual.systems["scorevae"].posterior
    z = posterior.sample(make_generator("cpu", seed, "draws", "z"))[: settings.images]
    drawn = usual.model.decode_draws(z, settings.count, seed=seed)
    expected = latents.spread(usual.originals[: settings.images], drawn)
    numbers = found.parts["draws"].numbers["scorevae"]
    assert numbers["calibration"] == pytest.approx(expected.calibration, rel=1e-6)


def test_distances_are_of_three_sets(found: Analysis) -> None:
    """Catches real images taken for samples."""
    numbers = found.parts["classifier_distances"].numbers
    assert set(numbers) == {"scorevae", "prior", "train_images"}
    values = [values["classifier_fd"] for values in numbers.values()]
    assert len(set(values)) == 3


@pytest.mark.parametrize("labels", [None, np.zeros(64, np.int64)], ids=["none", "one class"])
def test_without_labels_the_rest_goes_on(tmp_path: Path, labels: np.ndarray | None) -> None:
    """Catches an evaluation that ends where there is nothing to tell apart, or is silent."""
    said = []
    found = analyse(subject(tmp_path, labels), said.append)
    without = {"probes", "edits", "classifier_distances", "inception_distances"}
    assert set(found.reasons) == without
    assert all(any(name in line and "null" in line for line in said) for name in without)
    numbers = found.numbers()
    assert numbers["scorevae"]["linear_probe"] is None
    assert numbers["train_images"]["classifier_fd"] is None
    assert numbers["scorevae"]["bits_per_dim"] is not None


def test_too_few_images_are_named(tmp_path: Path) -> None:
    """Catches distances of fewer images than stated."""
    found = analyse(subject(tmp_path, **{"evaluate.quality.images": 65}), lambda part: None)
    assert "65 images asked for, 64 there" in found.reasons["classifier_distances"]


def test_parts_can_be_switched_off(tmp_path: Path) -> None:
    """Catches a part that runs although nobody wants it, and a null for it."""
    off = {f"evaluate.{part}.images": 0 for part in EVALUATE}
    found = analyse(subject(tmp_path, **off), lambda part: pytest.fail(part))
    assert found.numbers() == {}
    assert found.figures() == {}
    evaluation.write_tables(tmp_path / "tables", found)
    for name, columns in TABLES.items():
        with (tmp_path / f"tables/{name}.csv").open(newline="") as file:
            assert list(csv.reader(file)) == [columns]


def test_tables_are_written_as_they_are(tmp_path: Path, found: Analysis) -> None:
    """Catches columns exchanged or lost on the way to the file."""
    evaluation.write_tables(tmp_path, found)
    for name, columns, rows in found.tables():
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            written = list(csv.DictReader(file))
        assert [list(row) for row in written] == [columns] * len(rows)
        assert written == [{key: str(row[key]) for key in columns} for row in rows]
    with (tmp_path / "costs.csv").open(newline="") as file:
        assert {row["part"] for row in csv.DictReader(file)} == set(PARTS)


def test_numbers_of_a_missing_part_are_those_it_would_have(
    monkeypatch: pytest.MonkeyPatch, usual: Subject, found: Analysis
) -> None:
    """Catches a null under a name that no run ever has."""

    def unavailable(subject: Subject) -> Part:
        raise MetricUnavailable("not here")

    parts = {name: (unavailable, key) for name, (_, key) in PARTS.items()}
    monkeypatch.setattr(analysis, "PARTS", parts)
    nothing = analyse(usual, lambda part: None).numbers()
    there = found.numbers()
    for system, values in nothing.items():
        assert set(values.values()) == {None}
        assert set(values) <= set(there[system])
    assert set(NUMBERS) <= set(PARTS)


def test_sections_show_every_number(tmp_path: Path, found: Analysis) -> None:
    """Catches a number of metrics.json that the report does not show, and a lost reason."""
    numbers = found.numbers()
    shown = sections.sections(found, numbers, tmp_path)
    named = {*sections.BITS, *sections.CODES, *sections.USE, *sections.DISTANCES}
    assert {name for values in numbers.values() for name in values} <= named
    assert named <= set(METRICS)
    cells = [cell for s in shown for t in s.tables for row in t.rows for cell in row]
    values = {cell.value for cell in cells if isinstance(cell, Number)}
    for system in numbers.values():
        assert {value for value in system.values() if value is not None} <= values
    reasons = {c.reason for c in cells if isinstance(c, Number) and c.value is None}
    assert any("under the 32 that Inception needs" in reason for reason in reasons)
    titles = [card.label for card in sections.cards(numbers)]
    assert titles == ["Bits per dimension", "Linear probe on z"]
    assert sections.cards({}) == []
