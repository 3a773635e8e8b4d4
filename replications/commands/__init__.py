"""The verbs of `bitlaw`: each module is a typer app that imports heavy packages inside its functions."""
