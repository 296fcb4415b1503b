"""The mathematics: noise, joint tensor, network, constraints and solver. Torch only: no files, no coordinates."""
