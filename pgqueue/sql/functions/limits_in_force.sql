-- What the App declares, and over it what an operator has chosen (see limit_queue). Of weights each by itself.
CREATE OR REPLACE FUNCTION pgqueue.limits_in_force(declared jsonb, chosen jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
    SELECT jsonb_strip_nulls(declared || chosen || CASE WHEN jsonb_typeof(declared -> 'weights') = 'object' AND jsonb_typeof(chosen -> 'weights') = 'object'
                                                        THEN jsonb_build_object('weights', (declared -> 'weights') || (chosen -> 'weights')) ELSE '{}' END)
$$;
