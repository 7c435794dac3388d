"""The process of a command, for the pipeline's stages and the server.

Modules: `environment` (variables, folders and limits, checked before other imports), `signals`
(how an interrupted command ends), `addresses` (which of them only this machine reaches).
"""
