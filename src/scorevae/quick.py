"""``quick: true``: the same parameters made small, so that all stages and the report take minutes.

For a look at whether everything works, on data or a preset that are new. Applied once, where
params.yaml is read, to plain values: whatever reads the configuration sees the small ones, and so
do the records. The numbers of such a run mean nothing, which is why its limits stand here and
not in params.yaml.
"""

from copy import deepcopy
from typing import Any

Tree = dict[str, Any]

# For two slow CPU cores; beside these seconds each stage spends about eight on its imports.
SPEED = 40e9  # floating-point operations a second
TRAINING_SECONDS = 4.0  # of each of the four trainings
VALIDATION_SECONDS = 2.0  # of each of their test losses
DECODING_SECONDS = 16.0  # of all images that reconstruct and evaluate draw
STEP_SECONDS = 0.03  # of a step of training, however small the network
DECODINGS = 40  # of an image that the parts of evaluate are given, about
UNKNOWN_PRIOR = 12e9  # operations of a pretrained prior, whose size its file alone tells


def made_quick(tree: Tree) -> Tree:
    """The values of params.yaml with the selected preset, the sampling and evaluate made small."""
    small = deepcopy(tree)
    preset = small["presets"][small["preset"]]
    work = operations(preset)
    _shorten(preset, work)
    drawn = DECODING_SECONDS * SPEED / work  # images times steps of the sampler
    steps = _between(2, drawn / (4 * DECODINGS), 10)
    images = _between(2, drawn / (DECODINGS * steps), 20)
    for protocol in small["protocols"].values():
        protocol["steps"] = min(protocol["steps"], steps)
    tested = _between(images, drawn / (10 * steps), 20)
    preset["test_images"] = min(preset["test_images"] or tested, tested)
    _evaluate_few(small["evaluate"], images, steps, everything=drawn >= DECODINGS * 2 * 2)
    for part in ("probes", "embedding", "likelihood"):  # which draw nothing
        small["evaluate"][part]["images"] = min(tree["evaluate"][part]["images"], tested)
    return small


def operations(preset: Tree) -> float:
    """Roughly those of the prior and of the encoder with its gradient, for one image."""
    size = preset["data"]["image"]["size"]
    prior, encoder = preset["prior"], preset["encoder"]["network"]
    unet = UNKNOWN_PRIOR if prior["source"] == "pretrained" else 100 * _products(prior, size)
    patch = encoder["patch"] if encoder["kind"] == "resnet" else 1
    return unet + 160 * _products({"network": encoder}, size // patch)


def _products(of: Tree, size: int) -> float:
    """Σ over levels of pixels · channels² · blocks: what its convolutions cost, over 18."""
    network = of["network"]
    widths = enumerate(network["channels"])
    return float(sum((size // 2**i) ** 2 * width**2 * network["blocks"] for i, width in widths))


def trainings(preset: Tree) -> list[Tree]:
    """The settings of every training of a preset."""
    encoder = preset["encoder"]
    others = (preset["prior"], preset["vae"], preset["corrector"], preset["diffusion_decoder"])
    return [part["training"] for part in (encoder["warm_start"], encoder, *others)]


def _shorten(preset: Tree, work: float) -> None:
    """Few images, few at a time, few steps."""
    data, most = preset["data"], _between(8, VALIDATION_SECONDS * SPEED / work, 200)
    data["images"] = min(data["images"] or most, most)
    for training in trainings(preset):
        steps_of_one = TRAINING_SECONDS * SPEED / (3 * work)  # there, back, and the average
        training["batch"] = batch = min(training["batch"], _between(2, steps_of_one / 4, 16))
        seconds = STEP_SECONDS + 3 * work * batch / SPEED
        training["steps"] = min(training["steps"], _between(2, TRAINING_SECONDS / seconds, 200))
        training["warmup"] = min(training["warmup"], training["steps"] // 4)
        training["log_every"] = min(training["log_every"], max(1, training["steps"] // 4))


# Of the sections of evaluate; what has no entry stays.
FEW = {
    "likelihood": {"repeats": 2, "draws": 1, "ode_images": 0},
    "probes": {"train_images": 200},
    "interpolations": {"steps": 4},
    "draws": {"count": 4},
    "quality": {"train_images": 200, "steps": 20},
}


def _evaluate_few(evaluate: Tree, images: int, steps: int, *, everything: bool) -> None:
    """Few images in every part; none in those that need many decodings, where one costs much."""
    evaluate["classifier_images"] = min(evaluate["classifier_images"], 200)
    evaluate["figure_images"] = min(evaluate["figure_images"], images)
    for name, part in evaluate.items():
        if isinstance(part, dict):
            most = images if everything else 0
            part["images"] = min(part["images"], most)
            part |= {key: min(part[key], value) for key, value in FEW.get(name, {}).items()}
    evaluate["interpolations"]["images"] = min(evaluate["interpolations"]["images"], images // 2)
    evaluate["samplers"]["evaluations"] = _at_most(evaluate["samplers"]["evaluations"], steps)
    trade = evaluate["trade"]
    trade["means"] = _at_most(trade["means"], 2)
    trade["noise_scales"] = sorted({trade["noise_scales"][0], trade["noise_scales"][-1]})


def _at_most(numbers: list[int], most: int) -> list[int]:
    return [number for number in numbers if number <= most] or [most]


def _between(least: int, number: float, most: int) -> int:
    return max(least, min(most, int(number)))
