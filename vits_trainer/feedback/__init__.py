"""Corrections of users, and what is learned from them."""
