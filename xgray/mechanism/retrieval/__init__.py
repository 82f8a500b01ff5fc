"""Bilingual sentence retrieval, and how well it predicts where tuning carries over."""
