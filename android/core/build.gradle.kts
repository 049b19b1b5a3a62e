// The library for the JVM. Its tests run with Maven, against the native library of the machine (test.sh).
plugins {
    alias(libs.plugins.kotlin.jvm)
    alias(libs.plugins.kotlin.serialization)
    `maven-publish`
}

group = "dev.dollop"
version = "0.1.0"

kotlin {
    explicitApi()
    jvmToolchain(17)
}

dependencies {
    api(libs.coroutines.core)
    api(libs.serialization.json)
}

sourceSets { test { kotlin.setSrcDirs(emptyList<String>()) } }

publishing {
    publications {
        create<MavenPublication>("core") {
            artifactId = "dollop-core"
            from(components["java"])
        }
    }
}
