"""What a process need not import."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from common.models import spare_imports
spare_imports()
from transformers import AutoModelForCausalLM, GenerationMixin
print(sorted({"sklearn", "scipy", "pandas"} & sys.modules.keys()))
import sklearn.metrics
print(sklearn.metrics.roc_auc_score([0, 1], [0.2, 0.7]))
"""


def test_transformers_imports_no_scikit_learn_and_who_wants_it_has_it() -> None:
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["[]", "1.0"]
