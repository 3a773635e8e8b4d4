"""The unified law, in the form that the pool chose (select.py; reports/unified/selection.json has all candidates).

    delta = k e^g D^a / N^b              L = A / N^alpha + B / D^beta + E + delta

in nats per token, N and D raw, e the relative error of the format (`relative_mse`: error.py, or as measured). Bits,
E and M, blocks, code books and pruned weights are the one number e. Activations, KV cache and what is cast in the
backward pass alone have errors of their own, e + r_a e_a + r_kv e_kv + r_b e_b, and a model that was trained in its
format (`trained` = 1; 0: rounded afterwards) another level, slope and exponent of D: times h e^g_t D^a_t.
"""

from replications.unified.forms import Form, delta_law, loss_law

CHOSEN = Form("additive", "energy", "free")
LOSS = loss_law(CHOSEN, "unified")
LAW = delta_law(CHOSEN, "unified_delta")
POOL = delta_law(CHOSEN, "unified_pool", streams=("a", "kv", "b"), trained=True)
LAWS = (LAW, LOSS, POOL)
