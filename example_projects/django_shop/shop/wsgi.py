"""The shop for a WSGI server: ``gunicorn shop.wsgi:application``."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
# The demonstration has no web server in front that would have the stylesheet.
application = StaticFilesHandler(get_wsgi_application())
