def nothing(*a):
    pass


add_load_arguments = add_clip_arguments = add_sample_arguments = add_decode_arguments = nothing
load = encode = sample = decode = nothing
