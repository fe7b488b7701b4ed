"""GLSL of the scene: what is solid, the sea, the sky, and the shadow map.

Every picture shader writes two targets: the colour, encoded for the display, and the motion vector:
where the surface under this pixel was in the previous frame, minus where it is now, in pixels, x to
the right and y up as OpenGL counts. It is exact, since both positions come from matrices; the
camera's jitter is in neither.

Light is computed per vertex, twice: in the sun and in the shade. A pixel only has to choose, which
is what keeps a software renderer fast.
"""

_VERTEX = """
#version 330 core
layout(std140) uniform Frame {
    mat4 view_projection;           // without jitter
    mat4 previous_view_projection;
    mat4 to_sun;                    // world to the shadow map, 0..1
    vec4 eye_and_seconds;
    vec4 size_and_jitter;           // both in pixels
};
const vec3 SUN = normalize(vec3(0.86, 0.42, 0.04));
const vec3 HAZE = vec3(0.86, 0.62, 0.42), ZENITH = vec3(0.04, 0.15, 0.42);

uniform mat4 model;
uniform mat4 previous_model;
out vec3 before;  // x and y in pixels and w, so that before.xy / before.z is a place

vec4 place(vec4 here, vec4 there) {
    vec4 now = view_projection * here;
    vec4 was = previous_view_projection * there;
    vec2 size = size_and_jitter.xy, jitter = size_and_jitter.zw;
    before = vec3((was.xy + was.w) * 0.5 * size + jitter * was.w, was.w);
    return now + vec4(2.0 * jitter / size * now.w, 0.0, 0.0);
}
"""

_FRAGMENT = """
#version 330 core
in vec3 before;
layout(location = 0) out vec4 colour;
layout(location = 1) out vec2 moved;

vec2 motion() { return before.xy / before.z - gl_FragCoord.xy; }

// Highlights roll off instead of clipping; the root is near enough to sRGB's curve, and cheaper.
vec4 displayed(vec3 light) { return vec4(sqrt(light / (0.65 + 0.45 * light)), 1.0); }
"""

SOLID_VERTEX = (
    _VERTEX
    + """
in vec3 position;
in vec3 normal;
in vec3 albedo;
in float ambient;
out vec3 sunlit;
out vec3 shaded;
out vec3 at;

void main() {
    vec4 here = model * vec4(position, 1.0);
    vec3 n = normalize(mat3(model) * normal);
    vec3 dome = mix(vec3(0.20, 0.15, 0.11), vec3(0.22, 0.34, 0.60), n.y * 0.5 + 0.5);
    shaded = albedo * dome * ambient + max(albedo - 1.0, 0.0);  // lamps shine by themselves
    sunlit = shaded + albedo * vec3(2.0, 1.42, 0.82) * max(dot(n, SUN), 0.0);
    at = (to_sun * (here + vec4(n * 0.06, 0.0))).xyz;
    gl_Position = place(here, previous_model * vec4(position, 1.0));
}
"""
)

SOLID_FRAGMENT = (
    _FRAGMENT
    + """
uniform sampler2DShadow shadows;
in vec3 sunlit;
in vec3 shaded;
in vec3 at;

void main() {
    colour = displayed(mix(shaded, sunlit, textureLod(shadows, at, 0.0)));
    moved = motion();
}
"""
)

SEA_VERTEX = (
    _VERTEX
    + """
in vec3 position;
in float ambient;  // of the water: its depth, 0..1
out vec4 ray;      // from the eye, in metres, and the depth
out vec2 world;
out vec3 at;

void main() {
    vec4 here = model * vec4(position, 1.0);
    ray = vec4(here.xyz - eye_and_seconds.xyz, ambient);
    world = here.xz;
    at = (to_sun * here).xyz;
    gl_Position = place(here, previous_model * vec4(position, 1.0));
}
"""
)

SEA_FRAGMENT = (
    _FRAGMENT
    + """
uniform sampler2DShadow shadows;
uniform float seconds;
in vec4 ray;
in vec2 world;
in vec3 at;
const vec3 SUN = normalize(vec3(0.86, 0.42, 0.04));

void main() {
    float away = dot(ray.xyz, ray.xyz);
    vec3 towards = ray.xyz * inversesqrt(away);
    // Waves of three directions, as slopes; far away they would only flicker. Parabolas stand in
    // for sines, which cost a software renderer a fifth of the frame.
    vec3 phase = vec3(dot(world, vec2(1.3, 1.1)) + seconds * 1.4,
                      dot(world, vec2(-2.3, 2.6)) + seconds * 1.9,
                      dot(world, vec2(5.6, -2.2)) - seconds * 2.7);
    vec3 x = fract(phase * 0.15915494) * 2.0 - 1.0;
    vec3 wave = 4.0 * x * (1.0 - abs(x)) * vec3(0.10, 0.10, 0.07) / (1.0 + away * 0.0012);
    vec3 n = vec3(-0.75 * wave.x + 0.66 * wave.y - 0.93 * wave.z, 1.0,
                  -0.66 * wave.x - 0.75 * wave.y + 0.36 * wave.z);
    float glance = clamp(1.0 + dot(n, towards), 0.0, 1.0);
    float mirror = glance * glance * glance;
    mirror = 0.03 + 0.62 * mirror * glance;
    vec3 bounce = reflect(towards, n);
    vec3 above = mix(vec3(0.78, 0.58, 0.44), vec3(0.07, 0.22, 0.52),
                     clamp(bounce.y * 3.0, 0.0, 1.0));
    float sun = textureLod(shadows, at, 0.0);
    float depth = ray.w;
    vec3 water = mix(vec3(0.05, 0.36, 0.30), vec3(0.005, 0.075, 0.12), depth) * (0.5 + 0.6 * sun);
    vec3 light = mix(water, above, mirror);
    float glint = max(dot(bounce, SUN), 0.0);
    glint *= glint; glint *= glint; glint *= glint; glint *= glint; glint *= glint;
    light += vec3(2.2, 1.5, 0.8) * glint * sun;
    float foam = 1.0 - smoothstep(0.04, 0.20, depth + wave.x * 0.5 + wave.z * 0.7);
    light = mix(light, vec3(0.8, 0.78, 0.72) * (0.45 + 0.6 * sun), foam);
    light = mix(light, vec3(0.86, 0.62, 0.42), away / (away + 9000.0));
    colour = displayed(light);
    moved = motion();
}
"""
)

SKY_VERTEX = (
    _VERTEX
    + """
in vec3 position;  // a direction: the sky is infinitely far, so only turning moves it
in vec2 panorama;
out vec2 at;

void main() {
    at = panorama;
    vec4 here = model * vec4(position, 0.0);
    gl_Position = place(here, previous_model * vec4(position, 0.0)).xyww;
}
"""
)

SKY_FRAGMENT = (
    _FRAGMENT
    + """
uniform sampler2D sky;
in vec2 at;

void main() {
    colour = textureLod(sky, at, 0.0);
    moved = motion();
}
"""
)

SHADOW_VERTEX = """
#version 330 core
uniform mat4 to_sun;
uniform mat4 model;
in vec3 position;

void main() { gl_Position = to_sun * (model * vec4(position, 1.0)); }
"""

SHADOW_FRAGMENT = """
#version 330 core
void main() {}
"""
