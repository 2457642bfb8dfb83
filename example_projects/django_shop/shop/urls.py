"""The shop's addresses."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import include, path

from shop import views
from stigg_guard.django import protect

urlpatterns = [
    path("", views.home, name="home"),
    path("sign-in/", views.sign_in, name="sign-in"),
    path("sign-up/", views.sign_up, name="sign-up"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("templates/", views.create_template, name="create-template"),
    path("templates/<int:pk>/delete/", views.delete_template, name="delete-template"),
    path("templates/<int:pk>/words/", views.write_words, name="write-words"),
    path("templates.csv", views.export, name="export"),
    path("suggestion/", views.suggest_name, name="suggest-name"),
    path("analytics/", views.Analytics.as_view(), name="analytics"),
    path("upgrade/", views.upgrade, name="upgrade"),
    path("top-up/", views.top_up, name="top-up"),
    path("api/", protect(include("shop.api"), "feature-api-calls", 1)),
    path("admin/", admin.site.urls),
]
if apps.is_installed("debug_toolbar"):
    urlpatterns.append(path("__debug__/", include("debug_toolbar.urls")))
