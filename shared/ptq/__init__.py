"""Post-training quantization of any causal language model of `transformers`, block by block, and what it costs.

Here belongs what is about a Hugging Face model: opening and saving it, finding its matrices, making windows of text for
it, running it block by block, the cells of a run, and the prediction of memory and time. The methods themselves work on
one matrix and its inputs, and are in `shared/quantize`; laws and figures are made by the command that calls this.
"""
