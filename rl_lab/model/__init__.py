"""The released Mixture-of-Transformers models: the vision-language model and the dual-tower policy around it.

Importing the package registers both with transformers' Auto classes.
"""

from rl_lab.model.registration import register

register()
