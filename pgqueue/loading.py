"""Finding the App that a command line names."""

from __future__ import annotations

import importlib
import os
import sys

from pgqueue.app import App
from pgqueue.errors import Configuration


def load_app(target: str) -> App:
    """The App that ``module:attribute`` names, with everything it includes. Configuration where that cannot be had."""
    module_name, _, attribute = target.partition(":")
    attribute = attribute or "app"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # what was seen by the process that forked us may be old
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise Configuration(
                f"there is no module {module_name!r} (looked in the current directory and the Python path): "
                "name it as MODULE:APP, such as shop.tasks:app"
            ) from None
        raise Configuration(f"importing {module_name} failed: {error}") from error
    except ImportError as error:
        raise Configuration(f"importing {module_name} failed: {error}") from error
    except Exception as error:
        raise Configuration(f"importing {module_name} failed: {type(error).__name__}: {error}") from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        apps = [name for name, value in vars(module).items() if isinstance(value, App)]
        hint = f"it has {', '.join(apps)}" if apps else "it has none"
        raise Configuration(f"{module_name}:{attribute} is not a pgqueue App ({hint}): name it as MODULE:APP")
    try:
        app.load()
    except Exception as error:
        raise Configuration(f"importing a module that {target} includes failed: {type(error).__name__}: {error}") from error
    return app
