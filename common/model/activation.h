/* The nonlinearities of MLPs, as config.json names them and kernels compute them. */
#ifndef QN_COMMON_MODEL_ACTIVATION_H
#define QN_COMMON_MODEL_ACTIVATION_H

typedef enum {
    QN_ACTIVATION_SILU,      /* x / (1 + e^-x): "silu", "swish" */
    QN_ACTIVATION_GELU_TANH, /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): "gelu_new", "gelu_pytorch_tanh" */
    QN_ACTIVATION_GELU,      /* x/2 (1 + erf(x / sqrt 2)): "gelu" */
    QN_ACTIVATION_RELU,      /* max(x, 0): "relu" */
} qn_activation_t;

#endif
