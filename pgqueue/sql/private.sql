-- Run at the end of every migration: nothing in the schema is for everybody. Who may do what is granted by role.
REVOKE ALL ON SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM PUBLIC;
