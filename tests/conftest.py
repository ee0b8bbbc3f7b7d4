"""Every annotated tensor shape in the package is checked while the tests run.

Tiny models are slower on several threads than on one, and the tests of a machine's other core want it too.
"""

import torch
from jaxtyping import install_import_hook

install_import_hook("gbcd", "beartype.beartype")
torch.set_num_threads(1)
