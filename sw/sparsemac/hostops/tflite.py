# SPDX-License-Identifier: Apache-2.0
"""Host operations with the integer arithmetic of TensorFlow Lite's reference kernels."""
