"""Write golden/*.json: the text `transformers` renders for every case. Run it after changing a case or a template.

python -m tests.core_tokens.make_golden
"""

from __future__ import annotations

import json
from pathlib import Path

from .cases import CASES
from .families import FAMILIES
from .reference import reference

GOLDEN = Path(__file__).parent / "golden"


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for family in FAMILIES:
        texts = {name: reference(family, case) for name, case in CASES.items()}
        (GOLDEN / f"{family}.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
