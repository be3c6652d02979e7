//! Tables for people, JSON for scripts.
