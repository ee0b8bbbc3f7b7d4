"""Every annotated tensor shape in the package is checked while the tests run.

Tiny models are slower on several threads than on one, and the tests of a machine's other core want it too. An example
of hypothesis may take its time: a busy machine is no failure.
"""

import hypothesis
import torch
from jaxtyping import install_import_hook

install_import_hook("gbcd", "beartype.beartype")
torch.set_num_threads(1)
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
