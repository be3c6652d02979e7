//! The board's end of the line on the desktop: updates that are cut off at every byte, and a server that is told all sorts of things.

mod flash;
mod server;
mod updates;
