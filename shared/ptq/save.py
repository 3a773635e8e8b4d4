"""A quantized model as a Hugging Face folder: the rounded weights in FP32, so that it computes what was measured."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from shared.errors import BitlawError
from shared.files import write_json


def save_model(model: Any, tokenizer: Any, folder: Path, about: dict[str, Any]) -> None:
    """Write model, tokenizer and `about` (bitlaw.json) to `folder`, which is either whole or absent.

    Raises BitlawError when something is there already.
    """
    if folder.exists():
        raise BitlawError(f"{folder}: is there already: remove it to save the model again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
        fresh = Path(temporary) / folder.name
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        write_json(fresh / "bitlaw.json", about)
        shutil.move(fresh, folder)
