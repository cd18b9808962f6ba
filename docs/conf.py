"""Configuration of Sphinx; see https://www.sphinx-doc.org/en/master/usage/configuration.html."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parents[1])

# The documentation is of this checkout, whatever else is installed: autodoc imports it here, the
# kernels that execute the pages import it by the environment.
sys.path.insert(0, _ROOT)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])],
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # what TensorFlow logs while it starts is no output

import optkit  # noqa: E402

project = "optkit"
author = "The optkit authors"
release = version = optkit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"optkit {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["outputs.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Pages are executed at every build, and a cell that fails fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # what TensorFlow's C++ parts log, with paths of the building machine

# Names in single backquotes are links where they are documented, and code where they are not.
default_role = "py:obj"
nitpicky = False

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in the class, not once more as members of their own
napoleon_use_rtype = False
