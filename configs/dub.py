"""Train the JustDubit LoRA: LTX-2 (19B) learns to dub a reference clip with the caption's words.

Purpose: rank-128 adapters on every attention and feed-forward of both streams, trained on pairs of
clips of the same speaker (arXiv 2601.22143).
Cost: the arithmetic floor of a step at 640x352x121 is about 1 s on an H100 with rematerialisation.
Result: OUTPUT/checkpoints/lora_weights_step_02000.safetensors, for ComfyUI and ltx-pipelines.
Command:
  python -m justdubit_jax.train --config configs/dub.py \
    --config.model.model_path=ltx-2-19b-dev.safetensors \
    --config.data.preprocessed_data_root=dataset/.precomputed --config.output_dir=outputs/dub
Vary any key as --config.optimization.steps=4000; lists and pairs are tuples:
  --config.optimization.learning_rate_groups="(('audio_attn', 1e-6), ('ff', 1e-5))"
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The keys of the torch trainer's configuration, with JustDubit's values."""
    c = config_dict.ConfigDict()

    c.model = config_dict.ConfigDict()
    c.model.model_path = config_dict.placeholder(str)  # LTX-2 .safetensors, or a converted folder
    c.model.text_encoder_path = config_dict.placeholder(str)  # Gemma 3 folder; for validation only
    c.model.training_mode = "lora"  # "lora" only
    # LoRA file, or its folder, to start from.
    c.model.load_checkpoint = config_dict.placeholder(str)
    # Whose timesteps modulate the audio-video attention: "own" (JustDubit's trainer), "other"
    # (ltx-core 1.0.0 to 1.1.3, ComfyUI), "other_gate" (scale and shift by the own, the gate by the
    # other's: ltx-core since 1.1.4), or "auto": own for LTX-2.0, other_gate for LTX-2.3.
    c.model.cross_timestep = "auto"

    c.lora = config_dict.ConfigDict()
    c.lora.rank = 128
    c.lora.alpha = 128  # the update is scaled by alpha / rank
    c.lora.dropout = 0.0  # probability of dropping an adapter's input
    # A module is adapted if its name is one of these or ends with ".<one of these>".
    c.lora.target_modules = ("to_k", "to_q", "to_v", "to_out.0", "net.0.proj", "net.2")

    c.training_strategy = config_dict.ConfigDict()
    c.training_strategy.name = "justdubit"  # the only one
    c.training_strategy.first_frame_conditioning_p = 0.1  # how often the first frame is given
    c.training_strategy.with_audio = True  # always
    # No audio-video attention to references.
    c.training_strategy.enable_cross_attention_masking = True
    c.training_strategy.audio_latents_dir = "audio_latents"  # folders below preprocessed_data_root
    c.training_strategy.reference_latents_dir = "reference_latents"
    c.training_strategy.reference_audio_latents_dir = "reference_audio_latents"
    c.training_strategy.mask_config = config_dict.ConfigDict()
    c.training_strategy.mask_config.mask_dir = "masks"
    c.training_strategy.mask_config.use_masked_loss = True  # weigh the face against the background
    c.training_strategy.mask_config.mask_loss_weight = 1.0  # weight where the mask is on
    c.training_strategy.mask_config.background_loss_weight = 0.1  # weight elsewhere
    c.training_strategy.mask_config.mask_threshold = 0.1  # on means above this, 0..1
    c.training_strategy.mask_config.use_soft_masks = False  # blend the weights by the mask instead

    c.optimization = config_dict.ConfigDict()
    c.optimization.learning_rate = 2e-4
    # (regex, rate): first one found in a parameter's name wins, else learning_rate. "audio_attn"
    # also finds video_to_audio_attn, as in the torch trainer.
    c.optimization.learning_rate_groups = (("audio_attn", 1e-6), ("audio_ff", 1e-6))
    c.optimization.steps = 2000  # optimizer updates
    c.optimization.batch_size = 1  # samples a step and data-parallel device
    c.optimization.gradient_accumulation_steps = 1
    c.optimization.max_grad_norm = 1.0  # global norm; 0 for no clipping
    c.optimization.optimizer_type = "adamw"  # or "adamw8bit": moments of a byte each
    c.optimization.first_moment_dtype = "float32"  # of adamw; or "bfloat16"
    # constant, linear, cosine, cosine_with_restarts, polynomial or step: torch's curves
    c.optimization.scheduler_type = "linear"
    c.optimization.scheduler_params = ()  # pairs, e.g. (("end_factor", 0.1),)
    c.optimization.warmup_steps = 0  # steps over which the rate grows to the schedule's
    c.optimization.ema_decay = 0.0  # of a running mean of the adapters, exported too; 0 is off
    # What the backward pass recomputes of the blocks: True, all but their inputs; False, nothing.
    # "attention" keeps the attention's outputs, "keys" its keys and values too, "queries" all of
    # them; "offload" moves the blocks' inputs to host memory. "auto" is the first of "queries",
    # "keys", "attention" that fits the device, else True; so it is where the device does not tell.
    c.optimization.enable_gradient_checkpointing = config_dict.FieldReference(
        "auto", field_type=object
    )

    c.acceleration = config_dict.ConfigDict()
    c.acceleration.mixed_precision_mode = "bf16"  # base weights and activations; "no" is float32
    # Storage of the blocks' frozen weights: "int8", "fp8" or "nf4"; else as mixed_precision_mode.
    c.acceleration.quantization = config_dict.placeholder(str)
    c.acceleration.load_text_encoder_in_8bit = False  # not needed: it never stands beside training

    c.mesh = config_dict.ConfigDict()
    c.mesh.data = -1  # data-parallel devices; -1 takes what fsdp leaves
    c.mesh.fsdp = 1  # devices that share one copy of the weights

    c.data = config_dict.ConfigDict()
    # The .precomputed folder, or the data set's with it.
    c.data.preprocessed_data_root = config_dict.placeholder(str)
    c.data.num_dataloader_workers = 2  # background reader threads; 0 reads in the loop

    c.validation = config_dict.ConfigDict()
    c.validation.prompts = ()  # what to sample every interval; none, no samples
    # The default of dub's --negative-prompt, too.
    c.validation.negative_prompt = "worst quality, inconsistent motion, blurry, jittery, distorted"
    c.validation.images = ()  # first frames, one a prompt
    c.validation.reference_videos = ()  # clips to dub, one a prompt
    c.validation.videos_per_prompt = 1
    c.validation.include_reference_in_output = False  # side by side
    c.validation.video_dims = (640, 352, 121)  # width, height (multiples of 32), frames (8k+1)
    c.validation.frame_rate = 25.0  # frames per second
    c.validation.seed = 42
    c.validation.inference_steps = 30
    c.validation.interval = 100  # steps between samples; 0 for none
    c.validation.guidance_scale = 3.0  # of the prompt over the negative prompt; 1 is off
    c.validation.audio_cfg_scale = config_dict.placeholder(float)  # of the sound; as guidance_scale
    c.validation.video_modality_guidance_scale = 1.0  # of hearing the sound over not; 1 is off
    c.validation.audio_modality_guidance_scale = 1.0  # of seeing the picture over not; 1 is off
    c.validation.guidance_rescale = 0.0  # towards the unguided contrast, 0..1
    c.validation.audio_guidance_rescale = config_dict.placeholder(float)  # as guidance_rescale
    # Guidance passes side by side (True) or one after the other (False): by free memory if None.
    c.validation.batch_guidance = config_dict.placeholder(bool)
    c.validation.generate_audio = True
    c.validation.skip_initial_validation = False
    c.validation.stg_scale = 0.0  # 0 is off
    c.validation.stg_blocks = (29,)
    c.validation.stg_mode = "stg_av"
    # Samples of the data set kept out of training, whose loss at fixed noise is logged every
    # interval: the same weights give the same number, so checkpoints can be ranked.
    c.validation.holdout = 0
    # As in training; a different value is an error, since samples would show another model.
    c.validation.enable_cross_attention_masking = True

    c.checkpoints = config_dict.ConfigDict()
    c.checkpoints.interval = 250  # steps between checkpoints; 0 for the last step only
    c.checkpoints.keep_last_n = -1  # -1 keeps all
    # Name the checkpoint of least held-out loss in best.json; needs validation.holdout.
    c.checkpoints.keep_best = False
    c.checkpoints.precision = "bfloat16"  # of the exported LoRA; or "float32"

    c.wandb = config_dict.ConfigDict()  # Weights & Biases, beside TensorBoard; extra "wandb"
    c.wandb.enabled = False
    c.wandb.project = "justdubit"
    c.wandb.entity = config_dict.placeholder(str)
    c.wandb.tags = ()
    c.wandb.log_validation_videos = True

    c.hub = config_dict.ConfigDict()
    c.hub.push_to_hub = False  # not supported yet
    c.hub.hub_model_id = config_dict.placeholder(str)  # not read until then

    c.flow_matching = config_dict.ConfigDict()
    c.flow_matching.timestep_sampling_mode = "shifted_logit_normal"  # or "uniform"
    c.flow_matching.timestep_sampling_params = ()  # (("std", 1.0),); (("min_value", 0.0), ...)

    c.seed = 42  # 0..2**32 - 1, as validation.seed
    c.output_dir = "outputs/dub"  # state/, checkpoints/, metrics.jsonl; an existing run continues
    return c
