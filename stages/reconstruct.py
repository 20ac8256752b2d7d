"""Stage reconstruct: the test images through every system."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

from contextlib import nullcontext

import click

from scorevae.autoencoders.decoding import decoding_of, write_decoding
from scorevae.autoencoders.table import systems_of, weight_files
from scorevae.config import load_config
from scorevae.data.arrays import load_split, to_tensor, to_unit_range
from scorevae.reconstructions import reconstruct, save
from scorevae.runtime.files import replacing
from scorevae.runtime.memory import explaining_memory
from scorevae.runtime.processes import spread
from scorevae.runtime.state import code_of, resumable, state_folder, state_key
from scorevae.runtime.team import team
from scorevae.runtime.tracking import track

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="folder of all weights")
@click.option("--output", type=PATH, required=True, help="folder to write")
@click.option("--decoding", type=PATH, required=True, help="file to write beside the weights")
def main(params: Path, data: Path, models: Path, output: Path, decoding: Path) -> None:
    """Reconstruct."""
    config = load_config(params)
    spread()
    settings, sampling, preset = config.reconstruct, config.sampling, config.selected
    images = load_split(data, "test", preset.data.image, preset.test_images).images
    remedy = f"lower reconstruct.batch ({settings.batch})"
    with team() as processes:
        systems = {name: row.load(models, config) for name, row in systems_of(config).items()}
        weights = weight_files(models, config)
        inputs = [data, *weights, *code_of("reconstruct")]
        key = state_key([config.seed, settings, sampling, len(images)], inputs)
        state = (
            resumable("reconstruct", key, repeats=True)
            if processes.writes  # it holds the state for all
            else nullcontext(state_folder("reconstruct", key))
        )
        with track("reconstruct", config) as tracker, state as held:
            processes.exchange(None)  # the one that holds it may have removed an old one
            for path in weights:
                tracker.weights("read", path)
            with explaining_memory(remedy):
                originals = to_unit_range(to_tensor(images))
                found = reconstruct(systems, originals, config, held.batches(), processes)
            if processes.writes:
                with replacing(output) as temporary:
                    temporary.mkdir()
                    for name, reconstructions in found.items():
                        save(temporary, name, reconstructions)
                write_decoding(decoding, decoding_of(config))


if __name__ == "__main__":
    main()
