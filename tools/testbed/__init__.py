"""Devices to test against, on this machine: see README.md beside this file."""
