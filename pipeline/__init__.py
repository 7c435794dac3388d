"""A batch pipeline on Ray: images -> dataset -> run -> model version -> alias -> scores.

Packages, from the top of the data flow to the bottom. A package imports only from those below it:

    stages        one thin module per stage: the commands of the command line
    evaluation    metrics of a model version, and its report
    training      data-parallel training, its batches and checkpoints
    models        the networks, their ONNX export, and prediction in onnxruntime
    data          sources, readers of their files, validation, shards
    cluster       the connection to Ray, and the resources of its nodes
    images        decoding of PNG and JPEG, and normalization to the model's input
    artifacts     storage, manifests, the commit protocol, the registry of models
    process       the environment of a command, and how it ends at a signal
    root modules  the command line, settings and recipes, the tensor contract, array types, errors,
                  console

A stage is one verb, one thin module in `pipeline/stages`, one command, and one settings class in
`config.py`. To add one: write the settings class `Verb` (a subclass of `Stage`), list it in
`STAGES` of `command_line.py`, and write `verb(settings)` in `pipeline/stages/verb.py`.
"""
