//! Sets of inputs and labels in `.npz` and `.npy` files.
