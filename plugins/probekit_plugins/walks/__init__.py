"""What all walks have in common: options, walkers as one batch, the same figures in the same form, and the page.

A walk starts from a prompt's embeddings `e*` and takes N steps `e_{n+1} = e_n + u_n` that should change a layer's
activation `O_l(e)` little; walks differ in how they choose `u_n`.
"""
