"""Exports of a student to formats that other programs read; each is tested in a fresh process before it appears.

`export` chooses the format: `diffusers_folder` with `few_step_pipeline`, `t2v_turbo` or `peft_lora`. `convert` turns
VideoCrafter2's checkpoint into a diffusers folder, `self_test` compares outputs, `model_card` writes the card.
Open `export` first.
"""
