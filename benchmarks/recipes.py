# Copyright (C) 2026 anomalib_ddpm_st authors
# SPDX-License-Identifier: Apache-2.0

"""What the defects are worth to an anomalib model that makes its own: Draem, trained equally long with either.

Example:
    python benchmarks/recipes.py --categories bottle --max-steps 300 --diffusion-paths '{"bottle": DIR}'

Draem's own generator has no DTD textures to blend in here, so it falls back to Perlin noise. Existing rows are skipped.
``seconds`` is the training, with DDPM and bank if they are not in the cache. Pictures show maps and scores.
"""

import itertools
import logging
import tempfile
import time

from accuracy import save_pictures
from anomalib.models import Draem
from common import (
    append_row,
    commit,
    has_row,
    make_mvtec,
    make_parser,
    make_training_engine,
    measure,
    raw_evaluator,
)
from lightning.pytorch import Callback, seed_everything

from anomalib_ddpm_st import SyntheticAnomalies

logger = logging.getLogger(__name__)

OWN = "own"


def main() -> None:
    """Train Draem with each source of defects; write one row for each source, category and seed."""
    parser = make_parser(__doc__, ["bottle"], "benchmarks/results/recipes.csv")
    parser.add_argument("--sources", nargs="+", default=[OWN, "mixture"], help="own, or a source of DefectConfig.")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--diffusion-paths", type=dict[str, str], default={}, help="Trained DDPMs of categories.")
    parser.add_argument("--cache-dir", type=str | None, default=None, help="Cache of DDPMs and banks.")
    args = parser.parse_args()

    for category, seed, source in itertools.product(args.categories, args.seeds, args.sources):
        key = {"source": source, "category": category, "seed": seed, "steps": args.max_steps}
        if has_row(args.output, **key):
            continue
        logger.info("Draem, %s, seed %s, defects: %s", category, seed, source)
        seed_everything(seed, verbose=False)
        datamodule = make_mvtec(args.data_root, category, args.batch_size, num_workers=0)
        with tempfile.TemporaryDirectory() as work_dir:
            callbacks: list[Callback] = []
            if source != OWN:
                cache_dir, diffusion_path = args.cache_dir or work_dir, args.diffusion_paths.get(category)
                callbacks = [SyntheticAnomalies({"source": source}, diffusion_path=diffusion_path, cache_dir=cache_dir)]
            model = Draem(
                dtd_dir=work_dir,
                pre_processor=Draem.configure_pre_processor((args.image_size, args.image_size)),
                post_processor=False,
                evaluator=raw_evaluator(),
                visualizer=False,
            )
            engine = make_training_engine(
                args.precision, default_root_dir=work_dir, callbacks=callbacks, max_steps=args.max_steps, max_epochs=-1
            )
            start = time.perf_counter()
            engine.fit(model, datamodule=datamodule)
            seconds = time.perf_counter() - start
            metrics = measure(model, datamodule, default_root_dir=work_dir)
        append_row(args.output, {**key, "commit": commit(), "seconds": round(seconds), **metrics})
        prefix = args.output.with_name(f"{args.output.stem}_{source}_{category}_{seed}")
        save_pictures(model, datamodule, prefix, args.pictures)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main()
