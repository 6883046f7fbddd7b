"""The processes of plumbline: everything that owns a device, a pool or shared state."""
