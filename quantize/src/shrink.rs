//! Lossless shrinking of a quantized graph: constant channels fold into the next bias, unread channels are removed.
