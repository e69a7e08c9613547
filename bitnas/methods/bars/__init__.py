"""BARS (Zhao et al. 2020): topology and layout searched together by gradient."""
