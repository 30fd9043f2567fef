"""Networks: teachers, students, the inputs that guidance adds, and the checkpoints they are loaded from.

In: weights in diffusers, VideoCrafter2 or T2V-Turbo layouts. Out: a `Teacher` that predicts, encodes and decodes, and
a `Student` that starts as its copy. `attention_probes` records attention maps for energies.
Open `teachers/protocol` first, then `student`.
"""
