"""Textbook formulas, to be read beside what is counted from the model and its compiled program.

They know one kind of model, a Llama-like decoder with as many key/value heads as query heads and an output matrix of
its own, and say how far a real one departs from it. Counts of parameters N and of tokens D are plain numbers.
"""

from maxlm.config import ModelConfig


def parameters(vocab_size: int, num_layers: int, embed_dim: int, mlp_dim: int) -> int:
    """2VH + (2L + 1)H + 4LH^2 + 3LHH': embedding and output, norms, attention, gated MLP.

    LLaMA-7B (Touvron et al. 2023): V 32000, L 32, H 4096, H' 11008 give 6,738,415,616.
    """
    tables, norms = 2 * vocab_size * embed_dim, (2 * num_layers + 1) * embed_dim
    return tables + norms + 4 * num_layers * embed_dim**2 + 3 * num_layers * embed_dim * mlp_dim


def parameters_of(config: ModelConfig) -> int:
    """`parameters` at the sizes of a model, whatever else it has."""
    return parameters(config.vocab_size, config.num_layers, config.embed_dim, config.mlp_dim)


def training_flops(parameters: float, tokens: float) -> float:
    """6ND: two FLOPs per parameter and token forward, four backward; attention is left out (Kaplan et al. 2020,
    section 2.1)."""
    return 6.0 * parameters * tokens


def optimum_tokens(parameters: float) -> float:
    """About 20 tokens per parameter make the best model for their compute (Hoffmann et al. 2022, table 3)."""
    return 20.0 * parameters


def kaplan_loss(parameters: float, tokens: float) -> float:
    """Nats per token after N parameters, embeddings left out, saw D tokens (Kaplan et al. 2020, equation 1.5).

    ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D with the joint fit of their table 2, in their tokens of WebText2.
    Their models were small and their learning rates not fitted to D: it favours large N.
    """
    alpha_n, alpha_d, critical_n, critical_d = 0.076, 0.103, 6.4e13, 1.8e13
    return ((critical_n / parameters) ** (alpha_n / alpha_d) + critical_d / tokens) ** alpha_d


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Nats per token: E + A / N^alpha + B / D^beta, N with embeddings (Hoffmann et al. 2022, equation 10).

    In their tokens of MassiveText. (A second look at their data found E 1.82, A 482, B 2085, alpha 0.35, beta 0.37:
    Besiroglu et al. 2024.)
    """
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def state_bytes(parameters: float) -> float:
    """16 bytes per parameter of mixed-precision Adam: parameter and gradient in 16 bits, and in float32 a copy of the
    parameter and two moments (Rajbhandari et al. 2020, section 3.1)."""
    return 16.0 * parameters


def activation_bytes(num_layers: int, batch: int, seq_len: int, embed_dim: int) -> float:
    """2LBTH: every layer's input in 16 bits, the rest recomputed; of a batch of B sequences of T tokens."""
    return 2.0 * num_layers * batch * seq_len * embed_dim


def logits_bytes(batch: int, seq_len: int, vocab_size: int) -> float:
    """12BTV: logits, their softmax and their gradient in float32, where the loss is not computed in chunks."""
    return 12.0 * batch * seq_len * vocab_size
