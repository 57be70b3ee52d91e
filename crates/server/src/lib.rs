//! HTTP in: dialects, gateway, metrics. Never touches kernels or the engine; its tests run on `ScriptedEngine`.
