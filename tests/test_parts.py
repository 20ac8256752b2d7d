"""evaluation: each part hands on what the libraries find or says why not; what is written."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import vector
from tiny import EVALUATE, tiny_config, write_encoder, write_prior, write_vae
from torch import nn

from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.table import BASELINE, MODEL
from scorevae.config import read_tree
from scorevae.data.arrays import Split, to_tensor
from scorevae.errors import Unavailable
from scorevae.evaluation import figures, lpips, metrics, probe, stage
from scorevae.evaluation import part as parts
from scorevae.evaluation.bound import Bound, Estimate, Integrand, likelihood_bound
from scorevae.evaluation.features import FeatureClassifier
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Caption, Columns, Found, Part, Subject
from scorevae.evaluation.parts import PARTS, comparison, draws, likelihood, shuffled
from scorevae.evaluation.report.tables import Metric
from scorevae.evaluation.stage import Analysis, Outputs, analyse, evaluate
from scorevae.gaussian import DiagonalGaussian
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions, save
from scorevae.shapes import Images

pytestmark = pytest.mark.usefixtures("closed_figures")

ROOT = Path(__file__).resolve().parents[1]
TERMS = ("bits_reconstruction", "bits_prior_matching", "bits_diffusion", "bits_rate")
NAMES = {part.name for part in PARTS}
LABELS = np.arange(64) % 2


def subject(folder: Path, labels: np.ndarray | None = LABELS, **overrides: Any) -> Subject:  # noqa: ANN401
    """Random weights and random images of two classes."""
    config = tiny_config(**overrides)
    write_prior(folder / "prior.safetensors", config)
    write_encoder(folder / "encoder.safetensors", config)
    write_vae(folder / "vae.safetensors", config)
    for name in ("prior", "vae", "encoder"):
        (folder / f"{name}.csv").write_text(f"phase,step,loss,seconds\n{name},1,2.5,3.0\n")
    rng = np.random.default_rng(0)
    train, test = (
        Split(rng.integers(0, 256, (64, 8, 8, 1), dtype=np.uint8), labels) for _ in range(2)
    )
    found = Subject(config, folder, folder, train, test, folder, names={0: "neutral", 1: "smile"})
    decoded = found.systems[BASELINE].reconstruct(found.originals)
    for name, system in found.systems.items():
        save(folder, name, Reconstructions(decoded, system.encode(found.originals)))
    (folder / "lpips").mkdir()
    status = dict.fromkeys(("alex", "vgg"), "unavailable: images of 8 pixels")
    (folder / "lpips/lpips.json").write_text(json.dumps(status))
    return found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def found(usual: Subject) -> Analysis:
    """All parts, run once."""
    return analyse(usual, PARTS, lambda part: None)


def test_every_part_runs(found: Analysis) -> None:
    """Catches a part that is never called, and a reason without a fault."""
    assert set(found.found) == NAMES - {"inception_distances"}
    assert set(found.unavailable) == {"inception_distances"}
    assert set(found.seconds) == NAMES
    without = {"lpips", "paper_lpips", "inception_distances", "falling_percent"}
    assert set(found.reasons()) == without


def test_every_null_has_its_reason(found: Analysis) -> None:
    """Catches a dash on the page of which nobody knows why, as after a single test loss."""
    reasons = found.reasons()
    absent = {m for values in found.numbers().values() for m, v in values.items() if v is None}
    assert "falling_percent" in absent
    unexplained = {"calibration", "fid", "kid"}  # by its metric's own words; by its part
    assert absent - unexplained <= reasons.keys()


def test_parts_declare_what_they_find(usual: Subject, found: Analysis) -> None:
    """Catches a number, table or figure that no declaration names, and one that never comes."""
    assert len(NAMES) == len(PARTS)
    for part in PARTS:
        if part.name in found.unavailable:
            continue
        result = found.found[part.name]
        assert {n: set(v) for n, v in result.numbers.items()} == {
            name: set(values) for name, values in part.nothing(usual.config).items()
        }
        assert (set(result.tables), set(result.figures)) == (set(part.tables), set(part.figures))
        assert set(result.reasons) <= set(part.metrics)


def test_likelihood_is_that_of_the_library(usual: Subject, found: Analysis) -> None:
    """Catches systems exchanged, other images, another unit, and terms that do not add up."""
    settings, model = usual.config.evaluate.likelihood, usual.model
    bounds = likelihood_bound(
        to_tensor(usual.test.images[: settings.images]),
        sde=model.sde, posterior=model.posterior,
        repeats=settings.repeats, draws=settings.draws, batch=500, seed=usual.config.seed,
    )  # fmt: skip
    numbers = found.found["likelihood"].numbers
    for name, bound in (("scorevae", bounds.posterior), ("prior", bounds.prior)):
        expected = bound.bits_per_dimension()["total"]
        assert numbers[name]["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-6)
        errors = (expected.monte_carlo_error, expected.image_error)
        names = ("bits_per_dim_error", "bits_per_dim_image_error")
        assert [numbers[name][n] for n in names] == pytest.approx(errors, rel=1e-5)
        terms = [numbers[name].get(term, 0.0) for term in TERMS]
        assert sum(terms) == pytest.approx(expected.mean, rel=1e-9)
    assert "bits_rate" not in numbers["prior"]
    assert np.isfinite(numbers["prior"]["ode_bits_per_dim"])
    rows = [row["prior"] for row in found.found["likelihood"].tables["integrand"]]
    expected = bounds.prior.integrand.mean.tolist()
    assert rows == pytest.approx(expected, rel=1e-5, nan_ok=True)


def flat_bound(level: float, rate: float) -> Bound:
    """A bound whose integrand is flat; one bin is empty."""
    whole, one = Estimate(10 * level + rate, 0.1, 0.1), Estimate(1.0, 0.1, 0.1)
    terms = {"diffusion": Estimate(10 * level, 0.1, 0.1), "rate": Estimate(rate, 0.0, 0.1)}
    mean = vector(level, level, float("nan"), level)
    integrand = Integrand(vector(-6, -2, 2, 6), mean, 0.1 * mean, trained=5.0)
    return Bound(
        dimensions=2, total=whole, terms=terms, below_t_min=one, theorem_3=whole,
        per_image=vector(1, 1, 1), integrand=integrand,
    )  # fmt: skip


@pytest.mark.parametrize("posterior", [None, flat_bound(0.5, 7.0)], ids=["prior", "both"])
def test_the_integrand_is_drawn(tmp_path: Path, posterior: Bound | None) -> None:
    """Catches curves swapped, the prior missing, or a model without a latent that crashes."""
    bounds = {"prior": flat_bound(2.0, 0.0)} | ({"ScoreVAE": posterior} if posterior else {})
    figure = likelihood.draw(bounds)
    lines = {line.get_label().split(":")[0]: line for line in figure.axes[0].get_lines()}
    assert set(lines) == {*bounds, "t_min"}
    for name, bound in bounds.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), bound.integrand.mean)
        assert f"rate {bound.bits_per_dimension()['rate'].mean:.2f}" in lines[name].get_label()
    assert lines["t_min"].get_xdata()[0] == 5
    figures.save(figure, tmp_path / "integrand.png")
    assert (tmp_path / "integrand.png").stat().st_size > 1000


def test_studies_use_the_first_images(usual: Subject, found: Analysis) -> None:
    """Catches latents of other images than the originals they are compared with."""
    (row,) = (r for r in found.found["guidance"].tables["guidance"] if r["guidance"] == 1.0)
    count = usual.config.evaluate.guidance.images
    z = usual.model.encode(usual.originals[:count]).mean
    images = usual.model.decode(z, seed=usual.config.seed)
    expected = l2_distances(usual.originals[:count], images).mean().item()
    # the encoder in another batch: float32 convolutions
    assert row["l2"] == pytest.approx(expected, rel=1e-4)
    names = {row["sampler"] for row in found.found["samplers"].tables["samplers"]}
    assert len(names) == 6


def test_classes_go_by_their_names(found: Analysis) -> None:
    """Catches legends that say 0 and 1 although the data set knows what they are."""
    (axis,) = found.found["embedding"].figures["embedding"].axes
    assert [text.get_text() for text in axis.get_legend().texts] == ["neutral", "smile"]
    title = found.found["edits"].figures["edits"].get_suptitle()
    assert title == "z moved along E[z|smile] − E[z|neutral]"


def test_probes_know_their_code(usual: Subject, found: Analysis) -> None:
    """Catches codes exchanged between systems, and probes trained on test images."""
    numbers, settings = found.found["probes"].numbers, usual.config.evaluate.probes
    train, test = usual.probed, usual.test
    pixels = [to_tensor(split.images).flatten(1) * 0.5 + 0.5 for split in (train, test)]
    linear = probe.linear_probe(probe.labelled(pixels[0], train.labels))
    asked = probe.labelled(pixels[1][: settings.images], test.labels[: settings.images])
    assert numbers["pixels"]["linear_probe"] == probe.judge(linear, asked).accuracy
    assert set(numbers) == {"scorevae", "vae", "pixels"}
    rows = found.found["probes"].tables["probe_over_time"]
    assert [row["t"] for row in rows] == settings.times
    assert rows[0]["accuracy"] == numbers["scorevae"]["linear_probe"]


def test_shuffled_z_is_another_images(usual: Subject, found: Analysis) -> None:
    """Catches the image's own z in both, and other noise for one of them."""
    count, seed = usual.config.evaluate.shuffled.images, usual.config.seed
    z, originals = usual.z[:count], usual.originals[:count]
    partner = shuffled.derangement(count, seed)
    both = usual.model.decode_groups(torch.stack([z, z[partner]], dim=1), seed=seed)
    expected = l2_distances(originals, both[:, 1]).mean().item()
    assert found.found["shuffled"].numbers["scorevae"]["l2_shuffled_z"] == expected


def test_draws_are_for_sampled_latents(usual: Subject, found: Analysis) -> None:
    """Catches draws for the mean of q(z|x), not calibrated, and L2 of draw and mean exchanged."""
    settings, seed = usual.config.evaluate.draws, usual.config.seed
    posterior = usual.reconstructed[MODEL].posterior
    z = posterior.sample(make_generator("cpu", seed, "draws", "z"))[: settings.images]
    drawn = usual.model.decode_draws(z, settings.count, seed=seed)
    expected = draws.spread(usual.originals[: settings.images], drawn)
    numbers = found.found["draws"].numbers["scorevae"]
    assert numbers["calibration"] == pytest.approx(expected.calibration, rel=1e-6)
    assert numbers["l2_of_mean"] < numbers["l2_of_one_draw"]  # by convexity


def test_distances_are_of_three_sets(found: Analysis) -> None:
    """Catches real images taken for samples."""
    numbers = found.found["classifier_distances"].numbers
    assert set(numbers) == {"scorevae", "prior", "train_images"}
    assert len({values["classifier_fd"] for values in numbers.values()}) == 3


@pytest.mark.parametrize("labels", [None, np.zeros(64, np.int64)], ids=["none", "one class"])
def test_without_labels_the_rest_goes_on(tmp_path: Path, labels: np.ndarray | None) -> None:
    """Catches an evaluation that ends where there is nothing to tell apart, or is silent."""
    said = []
    decoding = {"samplers", "guidance", "trade", "draws", "interpolations", "samples"}  # no label
    asked = [part for part in PARTS if part.name not in decoding]
    found = analyse(subject(tmp_path, labels), asked, said.append)
    without = {"probes", "edits", "classifier_distances", "inception_distances"}
    assert set(found.unavailable) == without
    assert all(any(name in line and "null" in line for line in said) for name in without)
    numbers = found.numbers()
    assert numbers["scorevae"]["linear_probe"] is None
    assert numbers["train_images"]["classifier_fd"] is None
    assert numbers["scorevae"]["bits_per_dim"] is not None


def test_too_few_images_are_named(tmp_path: Path) -> None:
    """Catches distances of fewer images than stated."""
    few, name = subject(tmp_path, **{"evaluate.quality.images": 65}), "classifier_distances"
    found = analyse(few, [part for part in PARTS if part.name == name], lambda part: None)
    assert "65 images asked for, 64 there" in found.unavailable[name]


def test_parts_can_be_switched_off(tmp_path: Path) -> None:
    """Catches a part that runs although nobody wants it, and a null for it."""
    off = {f"evaluate.{part}.images": 0 for part in EVALUATE}
    ran: list[str] = []
    found = analyse(subject(tmp_path, **off), PARTS, ran.append)
    assert ran == [part.name for part in PARTS if part.settings is None]
    assert set(found.numbers()) == {MODEL, BASELINE}
    stage.write_tables(tmp_path / "tables", found)
    for part in PARTS:
        for name, columns in part.tables.items():
            with (tmp_path / f"tables/{name}.csv").open(newline="") as file:
                assert list(csv.reader(file)) == [list(columns.names)]


def test_tables_are_written_as_they_are(tmp_path: Path, found: Analysis) -> None:
    """Catches columns exchanged or lost on the way to the file."""
    stage.write_tables(tmp_path, found)
    for name, columns, rows in found.tables():
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            written = list(csv.DictReader(file))
        assert [tuple(row) for row in written] == [columns] * len(rows)
        assert written == [{key: str(row[key]) for key in columns} for row in rows]
    with (tmp_path / "costs.csv").open(newline="") as file:
        assert {row["part"] for row in csv.DictReader(file)} == NAMES


TOY = Part(
    name="toy",
    title="A toy",
    text="It counts.",
    compute=lambda subject: Found(
        {MODEL: {"count": len(subject.originals)}, "toys": {"count": 7}},
        {"toys": [{"toy": "top", "spins": 3}]},
        {"toy_figure": figures.lines(1)[0]},
        ["It is said aloud."],
    ),
    metrics={"count": Metric("Toys counted", headline=0)},
    rows={MODEL: None, "toys": None},
    tables={"toys": Columns(("toy", "spins"), "All toys", lambda row: row)},
    figures={"toy_figure": Caption("The toy, drawn.", "An empty panel")},
)
BROKEN = Part("broken", "Broken", "", compute=lambda subject: missing(), rows={MODEL: None},
              metrics={"count": Metric("Toys counted")})  # fmt: skip


def missing() -> Found:
    """What a part does that cannot be had."""
    raise Unavailable("no toys here")


def test_a_part_is_one_declaration(
    tmp_path: Path, usual: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a place beyond the part itself that would have to know it."""
    monkeypatch.chdir(tmp_path)
    names = ("metrics.json", "reasons.json", "errors.csv", "tables", "figures", "report.html")
    written, params = Outputs(*(tmp_path / name for name in names)), tmp_path / "params.yaml"
    evaluate(usual, written, params=params, report_step=lambda step: None, parts=(TOY,))
    assert json.loads(written.metrics.read_text()) == {MODEL: {"count": 64}, "toys": {"count": 7}}
    assert (written.tables / "toys.csv").read_text().split() == ["toy,spins", "top,3"]
    assert [path.name for path in written.figures.iterdir()] == ["toy_figure.png"]
    page = written.page.read_text(encoding="utf-8")
    for text in ("A toy", "It counts.", "All toys", "It is said aloud.", "The toy, drawn."):
        assert text in page
    assert page.count("Toys counted") == 2  # in the table and on a card
    # DVC plots what lies in the folder of figures, whoever drew it.
    assert "results/${preset}/figures" in read_tree(ROOT / "dvc.yaml")["plots"]


def test_numbers_of_a_missing_part_are_those_it_would_have(usual: Subject) -> None:
    """Catches a missing number without null and reason."""
    found = analyse(usual, (BROKEN,), lambda part: None)
    assert found.numbers() == {MODEL: {"count": None}}
    assert found.reasons() == {"broken": "no toys here"}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_memory_is_explained_by_the_parts_settings(part: Part) -> None:
    """Catches a part whose remedy names nothing that it reads."""
    said = stage.memory_remedy(tiny_config(), part.name)
    own = f"evaluate.{part.settings}.images" if part.settings else "presets.digits.test_images"
    assert said.startswith(f"in {part.name}, lower reconstruct.batch (")
    assert own in said


# --- judges, and what is written down --------------------------------------------------------


def pictures(folder: Path, labels: np.ndarray | None, count: int = 4, **overrides: Any) -> Subject:  # noqa: ANN401
    """Random images in a folder without models."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    split = Split(images, labels)
    return Subject(tiny_config(**overrides), folder, folder, split, split, folder)


@pytest.mark.parametrize(
    "missing",
    [set(), {"squeeze"}, {"vgg"}, {"squeeze", "vgg"}, {"class_agreement"}],
    ids=lambda missing: " ".join(sorted(missing)) or "none",
)
def test_judges_are_the_presets_and_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, missing: set
) -> None:
    """Catches nets exchanged, a judge that takes another with it, and a silent null."""

    def load(folder: Path, net: str) -> nn.Module:
        assert folder == tmp_path / "lpips"
        if net in missing:
            raise Unavailable(said[net])
        return {"squeeze": squeeze, "vgg": vgg}[net]

    squeeze, vgg = nn.Identity(), nn.Identity()
    said = {net: f"{net} is not here" for net in ("squeeze", "vgg")}
    said["class_agreement"] = "class_agreement: the data have no labels"
    monkeypatch.setattr(lpips, "load_lpips", load)
    labels = None if "class_agreement" in missing else np.array([0, 1, 0, 1])
    net = {"presets.digits.lpips.net": "squeeze"}
    judges, reasons = comparison.open_judges(pictures(tmp_path, labels, **net))
    for judge, name, loaded in ((judges[0], "squeeze", squeeze), (judges[1], "vgg", vgg)):
        assert judge is (None if name in missing else loaded)
    assert (judges.classifier is None) == ("class_agreement" in missing)
    metrics = {"squeeze": "lpips", "vgg": "paper_lpips"}
    assert reasons == {metrics.get(name, name): said[name] for name in missing}
    warnings = capsys.readouterr().err.splitlines()
    expected = [f"warning: {said[name]}; reported as null" for name in sorted(missing)]
    assert sorted(warnings) == expected


def test_classifiers_are_sized_by_what_they_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches minutes of training for verdicts on two images."""
    many = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    train = Split(many, np.arange(200) % 2)
    few = Subject(
        tiny_config(**{f"evaluate.{n}.train_images": 150 for n in ("probes", "quality")}),
        tmp_path, tmp_path, train, Split(many[:2], train.labels[:2]), tmp_path,
    )  # fmt: skip
    asked = []

    def classifier(train: Split, limit: int, *others: object) -> FeatureClassifier:
        asked.append(limit)
        return FeatureClassifier(torch.sin, torch.sin)

    monkeypatch.setattr(lpips, "load_lpips", lambda folder, net: nn.Identity())
    monkeypatch.setattr(metrics, "train_classifier", classifier)
    monkeypatch.setattr(parts, "train_feature_classifier", classifier)
    comparison.open_judges(few)
    _ = few.feature_classifier
    assert [*asked, len(few.probed.images)] == 3 * [2 * parts.PER_JUDGED]


@pytest.mark.parametrize(
    ("asked", "evaluated", "least", "count"),
    [
        (20, 360, 1, 20),
        (20, 80, 1, 10),
        (20, 15, 1, 1),
        (20, 7, 1, 1),
        (20, 7, 2, 2),
        (1, 7, 2, 1),
    ],
)
def test_few_are_looked_at(asked: int, evaluated: int, least: int, count: int) -> None:
    """Catches minutes of decoding for numbers of ten images."""
    assert parts.looked_at(asked, evaluated, least) == count


@pytest.mark.parametrize(
    ("asked", "evaluated", "count"), [(20, 360, 20), (20, 16, 2), (1, 16, 1), (20, 15, 0)]
)
def test_a_study_of_one_image(asked: int, evaluated: int, count: int) -> None:
    """Catches settings that are compared on a single image, unless it is asked for."""
    assert parts.studied(asked, evaluated) == count


@pytest.mark.parametrize("name", ["samplers", "guidance", "trade"])
def test_studies_of_few_images_are_null(tmp_path: Path, name: str) -> None:
    """Catches one that is silent about it, and a report without the reason."""
    whole = subject(tmp_path)
    few = replace(whole, test=Split(whole.test.images[:15], LABELS[:15]))
    found = analyse(few, [part for part in PARTS if part.name == name], lambda part: None)
    assert found.unavailable == {name: f"{name}: 15 images evaluated, 16 are the least"}


@pytest.mark.parametrize(
    "name", ["samplers", "guidance", "trade", "draws", "edits", "interpolations"]
)
def test_they_look_at_an_eighth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Catches a part that decodes in many ways as many images as it is asked for."""
    drawn: list[int] = []
    draw = DiffusionSystem._draw

    def counting(
        self: DiffusionSystem, score: Any, x_1: Images, *others: Any, **more: Any
    ) -> Images:  # noqa: ANN401
        drawn.append(len(x_1))
        return draw(self, score, x_1, *others, **more)

    monkeypatch.setattr(DiffusionSystem, "_draw", counting)
    (studied,) = (part for part in PARTS if part.name == name)
    totals = []
    for images in (30, 8, 4):  # of 64
        drawn.clear()
        folder = tmp_path / str(images)
        folder.mkdir()
        studied.compute(subject(folder, **{f"evaluate.{name}.images": images}))
        totals.append(sum(drawn))
    assert totals[0] == totals[1] > totals[2] > 0


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (np.array([5, 0, 7]), ["5", "0", "7"]),
        (np.array([[1, 0], [0, 1], [1, 1]]), ["", "", ""]),  # attributes are no class
        (None, ["", "", ""]),
    ],
    ids=["classes", "attributes", "none"],
)
def test_errors_of_each_image(tmp_path: Path, labels: np.ndarray | None, cells: list[str]) -> None:
    """Catches rows exchanged, the systems' columns exchanged, and attributes taken for a class."""
    evaluated = pictures(tmp_path, labels, count=3)
    away = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]  # 8·away is the L2 of 64 pixels
    posterior = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))
    for system, factor in (("scorevae", 1), ("vae", -10)):
        save(tmp_path, system, Reconstructions(evaluated.originals + factor * away, posterior))
    stage.write_errors(tmp_path / "errors.csv", evaluated)
    assert (tmp_path / "errors.csv").read_text().splitlines() == [
        "image,label,scorevae_l2,vae_l2",
        f"0,{cells[0]},8.000000,80.000000",
        f"1,{cells[1]},16.000000,160.000000",
        f"2,{cells[2]},24.000000,240.000000",
    ]


def test_numbers_that_are_not_there(tmp_path: Path) -> None:
    """Catches inf in JSON, and nulls sent to tracking as numbers."""
    values = {"psnr": float("inf"), "lpips": None, "active_units": 3, "l2": 0.5}
    stage.write_metrics(tmp_path / "metrics.json", {"scorevae": values})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == {"scorevae": values | {"psnr": None}}
    sent = stage.headline({"scorevae": values})
    assert sent == {"scorevae.active_units": 3.0, "scorevae.l2": 0.5}
    rows = [line.split() for line in stage.table({"scorevae": values}).splitlines()]
    assert rows[0] == ["metric", "ScoreVAE"]
    assert [row[0] for row in rows[1:]] == list(comparison.METRICS)
    printed = {"psnr": "inf", "lpips": "null", "active_units": "3", "l2": "0.5000"}
    assert {name: dict(rows[1:])[name] for name in values} == printed


def test_reasons_with_any_name(tmp_path: Path) -> None:
    """Catches reasons lost to the name of a file that is not UTF-8."""
    stage.write_json(tmp_path / "reasons.json", {"fid": "γ of " + os.fsdecode(b"caf\xe9")})
    reasons = json.loads((tmp_path / "reasons.json").read_text(encoding="utf-8"))
    assert reasons == {"fid": "γ of caf?"}
