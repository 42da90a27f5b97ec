"""Tests of applications that use pgqueue: a plugin for pytest with the fixture ``pgqueue``.

pytest finds it by itself where pgqueue is installed. See docs/guides/testing.md.
"""
