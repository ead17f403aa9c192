"""Train LTX-2 to dub: JustDubit LoRA training in JAX and Flax NNX."""
