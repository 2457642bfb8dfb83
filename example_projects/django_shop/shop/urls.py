"""The shop's addresses."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

from shop import views

urlpatterns = [
    path("", views.home, name="home"),
    path("sign-in/", views.sign_in, name="sign-in"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("templates/", views.create_template, name="create-template"),
    path("templates/<int:pk>/delete/", views.delete_template, name="delete-template"),
    path("templates.csv", views.export, name="export"),
    path("suggestion/", views.suggest_name, name="suggest-name"),
    path("analytics/", views.analytics, name="analytics"),
    path("upgrade/", views.upgrade, name="upgrade"),
    path("api/templates/", views.list_templates, name="api-templates"),
    path("admin/", admin.site.urls),
]
